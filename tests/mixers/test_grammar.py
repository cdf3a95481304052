"""The grammar of layers: what is written is read again, and what it does not hold is refused in one line."""

import random

import pytest

from hybrid_flax.errors import ConfigError
from hybrid_flax.mixers.grammar import Layer, count_layers, names_in
from hybrid_flax.mixers.registry import make_mixer, mixer_options, parse_layer, registered_mixers

LSTM, ATTN, SWA = map(Layer, ("lstm", "attn", "swa"))


@pytest.mark.parametrize(
    "text,wanted",
    [
        ("lstm", LSTM),
        (" lstm ", LSTM),
        ("bi:lstm", Layer("bi", (LSTM,))),
        ("cascade:lstm+attn", Layer("cascade", (LSTM, ATTN))),
        ("add:lstm+lstm", Layer("add", (LSTM, LSTM))),
        ("gate:bi:lstm+attn", Layer("gate", (Layer("bi", (LSTM,)), ATTN))),
        ("bi:gate:lstm+attn", Layer("bi", (Layer("gate", (LSTM, ATTN)),))),
        ("add:cascade:lstm+attn+swa", Layer("add", (Layer("cascade", (LSTM, ATTN)), SWA))),
        ("add:swa+cascade:lstm+attn", Layer("add", (SWA, Layer("cascade", (LSTM, ATTN))))),
        ("swa@num_heads=2@window=7", Layer("swa", (), (("num_heads", 2), ("window", 7)))),
        ("sharnn@window=7:bi:lstm", Layer("sharnn", (Layer("bi", (LSTM,)),), (("window", 7),))),
        ("attn@causal=false@rope_base=1e20", Layer("attn", (), (("causal", False), ("rope_base", 1e20)))),
        ("attn@window=none", Layer("attn", (), (("window", None),))),
    ],
)
def test_layers_are_read_and_written(text, wanted):
    read = parse_layer(text)
    assert read == wanted and str(read) == text.strip()


@pytest.mark.parametrize("text", ["swa@window=7@num_heads=2", "swa@num_heads=2@window=0_7", "swa@num_heads=2@window=7"])
def test_a_layer_is_written_in_one_way(text):
    assert str(parse_layer(text)) == "swa@num_heads=2@window=7"


def draw_tree(rng, depth):
    """A layer made without the reader: names, arities and options by the registry, values written by hand."""
    arity = {"bi": 1, "sharnn": 1, "add": 2, "cascade": 2, "gate": 2}
    name = rng.choice([*arity, "swa", "lstm", "gla", "conv"] if depth else ["swa", "lstm", "gla", "conv"])
    parts = tuple(draw_tree(rng, depth - 1) for _ in range(arity.get(name, 0)))
    drawn = {int: lambda: rng.randint(2, 64), bool: lambda: rng.random() < 0.5, float: lambda: rng.uniform(0.01, 0.99)}
    options = {
        key: drawn[option.type]()
        for key, option in mixer_options().get(name, {}).items()
        if option.type in drawn and rng.random() < 0.3
    }
    return Layer(name, parts, tuple(sorted(options.items())))


def words_of(layer, rng):
    """Its text, written by hand, the options in any order."""
    options = rng.sample(layer.options, len(layer.options))
    values = [str(value).lower() if isinstance(value, bool) else repr(value) for _, value in options]
    word = layer.name + "".join(f"@{key}={value}" for (key, _), value in zip(options, values))
    return word + (":" if layer.parts else "") + "+".join(words_of(part, rng) for part in layer.parts)


def test_random_trees_are_read_as_they_were_written():
    rng = random.Random(0)
    trees = [draw_tree(rng, rng.randrange(5)) for _ in range(300)]
    for tree in trees:
        read = parse_layer(words_of(tree, rng))
        assert read == tree and parse_layer(str(read)) == tree
        mixers, fusions = names_in(words_of(tree, rng))
        assert mixers == {*tree.mixers} and mixers | fusions == {*tree.names}
    assert max(len(tree.names) for tree in trees) > 10


WRONG = {
    "": "empty name",
    "+": "empty name",
    ":": "empty name",
    "lstm+": "empty name",
    "add:lstm+": "empty name",
    "add:lstm++attn": "empty name",
    "add::lstm+attn": "empty name",
    "@window=3": "empty name",
    "lsmt": "nearest: lstm",
    "add:gate:lstm+atn+swa": "unknown mixer 'atn' in layer 'add:gate:lstm+atn+swa'; nearest: attn",
    "bi:cascad:lstm+attn": "unknown fusion 'cascad' in layer 'bi:cascad:lstm+attn'; nearest: cascade",
    "lstm:attn": "'lstm', which is no fusion",
    "lstm+attn": "as in add:lstm+attn",
    "bi:gru+attn": "goes on after 'bi:gru' with 'attn'",
    "cascade:lstm": "1 of the 2 parts of cascade: write cascade:layer+layer",
    "bi:cascade:lstm": "1 of the 2 parts of cascade",
    "gate:bi+lstm": "0 of the 1 parts of bi: write bi:layer",
    "cascade": "0 of the 2 parts of cascade",
    "lstm@": "unknown option '' of lstm",
    "lstm@@peephole=true": "unknown option '' of lstm",
    "add:lstm+swa@windw=3": "layer 'add:lstm+swa@windw=3' has an unknown option 'windw' of swa; nearest: window",
    "add@window=3:lstm+swa": "unknown option 'window' of add; it has none",
    "swa@window": "write swa@window=VALUE",
    "swa@window=": "write swa@window=VALUE",
    "swa@window==3": "write swa@window=VALUE",
    "swa@window= 3": "write swa@window=VALUE, without spaces",
    "swa@window=3@window=4": "swa@window twice",
    "bi:swa@window=0": "layer 'bi:swa@window=0': swa@window=0 must be at least 1",
    "swa@window=x": "swa@window='x' is no int",
    "swa@window=2.5": "swa@window='2.5' is no int",
    "swa@window=３": "swa@window='３' is no int",
    "swa@window=none": "swa@window='none' is no int",
    "attn@causal=maybe": "attn@causal='maybe' is no bool",
    "attn@position=rop": "none of rope, alibi, relative, none",
    "attn@rope_base=nan": "attn@rope_base=nan must be above 0.0",
    "attn@rope_base=1e+4": "attn@rope_base='1e' is no float",
    "sharnn@window=0:lstm": "sharnn@window=0 must be at least 1",
    "ｌstm": "nearest: lstm",
    "lst m": "nearest: lstm",
    "bi:" * 9 + "lstm": "more than 8 fusions within one another",
    "bi:" * 5000 + "lstm": "more than 8 fusions within one another",
    "lstm\n+": "unknown mixer 'lstm\\n'",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: ascii(text[:40]))
def test_what_the_grammar_does_not_hold(text):
    with pytest.raises(ConfigError) as caught:
        parse_layer(text)
    message = str(caught.value)
    assert WRONG[text] in message and "\n" not in message and len(message) < 600
    with pytest.raises(ConfigError):
        make_mixer(text, 16)


def test_layers_are_counted():
    known = registered_fusions()
    assert count_layers("lstm+attn", known) == count_layers("bi:lstm+attn", known) == 2
    assert count_layers("add:bi:lstm+add:lstm+swa@window=3", known) == 1
    assert count_layers("own+other", known) == 2


def registered_fusions():
    class Known:
        def __init__(self, num_parts):
            self.num_parts, self.options = num_parts, {}

    return {name.partition(":")[0]: Known(name.count("+") + 1) for name in registered_mixers() if ":" in name}


def test_names_of_a_pattern_are_neither_options_nor_values():
    mixers, fusions = names_in("own@norm=rms, add:bi:x@window=3+y,outer@form=bi:z")
    assert mixers == {"own", "x", "y", "z"} and fusions == {"add", "bi", "outer"}
    assert names_in("") == names_in(":,+@") == (set(), set())

"""Layers by the grammar of layers, and what it does not hold: said here again, and not asked of the package.

A layer is right at width 16. What is wrong is wrong by how it was made: words and arities that do not fit together, or
a name, an option or a value that is none.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["ARITIES", "NAMES", "WRONG", "Tree", "draw_layer", "draw_wrong", "simpler"]

ARITIES = {
    "cascade": 2, "add": 2, "gate": 2, "concat": 2, "context": 2, "parallel": 2, "feed": 2, "bi": 1, "sharnn": 1,
}  # fmt: skip
_GATED = {"state_width": ("8", "24"), "output_gate": ("gelu", "silu", "sigmoid"), "output_norm": ("rms", "layer")}
_HEADS = {"num_heads": ("1", "2", "4"), "qk_norm": ("true",), "rope_base": ("1e2", "500.0"), "soft_cap": ("5.0",)}
_MATRIX = {"num_heads": ("1", "2", "4"), "chunk": ("3", "8"), "output_norm": ("rms", "layer")}
# Every mixer, with options that are right at width 16 and reach further than a token.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "tanh": _GATED,
    "relu": {"output_norm": ("rms", "layer")},
    "lstm": _GATED | {"forget_bias": ("-0.5", "2.0"), "peephole": ("true",), "layer_norm": ("true",)},
    "lstmp": _GATED | {"projection": ("6",)},
    "gru": _GATED | {"reset_after": ("false",)},
    "mgu": _GATED,
    "slstm": {"num_heads": ("2", "4"), "forget_gate": ("exp",)},
    "mingru": _GATED,
    "minlstm": _GATED,
    "qrnn": {"taps": ("1", "3"), "state_width": ("8",)},
    "sru": {"highway_bias": ("-1.0",), "peephole": ("false",)},
    "indrnn": _GATED,
    "rglru": {"blocks": ("1", "2"), "taps": ("2", "3")},
    "hgrn": {"use_phase": ("false",), "lower_bound": ("0.25",)},
    "lru": {"max_phase": ("1.0",), "state_width": ("8",)},
    "s5": {"blocks": ("1", "2")},
    "s6": {"state_size": ("4",), "expansion": ("1",), "chunk": ("3",)},
    "linattn": _MATRIX,
    "retnet": _MATRIX,
    "gla": _MATRIX | {"gate_rank": ("4",)},
    "hgrn2": _MATRIX,
    "ssd": {"chunk": ("3", "8"), "state_width": ("8",)},
    "mlstm": _MATRIX,
    "deltanet": _MATRIX | {"negative_eigenvalues": ("true",)},
    "gdn": _MATRIX,
    "rwkv7": {"num_heads": ("2", "4"), "rank": ("4",)},
    "conv": {"taps": ("2", "3")},
    "attn": _HEADS | {"window": ("3", "9"), "causal": ("false",), "position": ("alibi", "none")},
    "swa": _HEADS | {"window": ("2", "7"), "sinks": ("1",)},
    "tanhdot": {"causal": ("false",)},
    "sink": {"window": ("3",), "sinks": ("2",)},
    "alibi": {"num_heads": ("1", "2"), "window": ("4",)},
    "chunked": {"chunk": ("3", "4", "8"), "num_heads": ("2",)},
    "sha": {"window": ("2", "6")},
    "blockrec": {"num_states": ("2", "5"), "gate": ("lstm",)},
    "xl": {"num_heads": ("1", "2"), "memory_blocks": ("2",)},
}
_FUSION_OPTIONS = {"sharnn": {"window": ("2", "6")}}


class Tree(NamedTuple):
    """A layer. options: (name, text of the value) pairs."""

    name: str
    parts: tuple["Tree", ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        word = self.name + "".join(f"@{key}={value}" for key, value in self.options)
        return f"{word}:{'+'.join(map(str, self.parts))}" if self.parts else word

    def nodes(self) -> Iterator["Tree"]:
        """It and all in it."""
        yield self
        for part in self.parts:
            yield from part.nodes()


def draw_layer(rng, levels: int, names: dict[str, dict[str, tuple[str, ...]]] = NAMES) -> Tree:
    """A fusion with fusions in it, `levels` of them within one another at most; a mixer of `names` for 0."""
    name = rng.choice([*ARITIES] if levels else [*names])
    below = [levels - 1, rng.choice((0, 0, levels - 1))][: ARITIES.get(name, 0)]
    parts = tuple(draw_layer(rng, level, names) for level in rng.sample(below, len(below)))
    known = (_FUSION_OPTIONS if parts else names).get(name, {})
    options = [(key, rng.choice(values)) for key, values in known.items() if rng.random() < 0.3]
    return Tree(name, parts, tuple(options))


def simpler(tree: Tree) -> Iterator[Tree]:
    """Layers that are a little smaller: a part alone, without an option, with a smaller part."""
    yield from tree.parts
    for place in range(len(tree.options)):
        yield tree._replace(options=tree.options[:place] + tree.options[place + 1 :])
    for place, part in enumerate(tree.parts):
        for smaller in simpler(part):
            yield tree._replace(parts=(*tree.parts[:place], smaller, *tree.parts[place + 1 :]))


def draw_wrong(rng) -> tuple[str, str]:
    """(kind, text) of a layer that is none."""
    kind = rng.choice([*WRONG])
    return kind, WRONG[kind](rng, draw_layer(rng, rng.randrange(1, 4)))


def _changed(rng, tree: Tree, change: Callable[[Tree], Tree], of: Callable[[Tree], bool] = lambda node: True) -> Tree:
    """The tree with change(node) in place of one node, of those for which `of` holds."""
    chosen = rng.choice([node for node in tree.nodes() if of(node)])

    def walk(node: Tree) -> Tree:
        return change(node) if node is chosen else node._replace(parts=tuple(map(walk, node.parts)))

    return walk(tree)


def _named(rng, tree, names, fusion):
    """One mixer, or one fusion, under a name that is none."""
    return str(
        _changed(rng, tree, lambda node: node._replace(name=rng.choice(names)), lambda n: bool(n.parts) == fusion)
    )


def _with_option(rng, tree, texts, name):
    """One of the mixers is a `name` with one of the options in `texts`, which is wrong."""

    def change(node):
        del node
        return Tree(f"{name}@{rng.choice(texts)}")

    return str(_changed(rng, tree, change, lambda node: not node.parts))


def _without_a_part(rng, tree):
    return str(_changed(rng, tree, lambda node: node._replace(parts=node.parts[1:]), lambda node: len(node.parts) > 1))


def _spoilt(rng, tree, letters):
    """A letter inside a name."""

    def change(node):
        place = rng.randrange(1, len(node.name))
        return node._replace(name=node.name[:place] + rng.choice(letters) + node.name[place:])

    return str(_changed(rng, tree, change))


def _doubled(rng, tree):
    text = str(tree)
    place = rng.choice([place for place, letter in enumerate(text) if letter in ":+@="])
    return text[:place] + text[place] + text[place:]


def _of_a_fusion(rng, tree):
    """An option of a fusion that has none."""
    return str(Tree(f"add@{rng.choice(('window=3', 'x', ''))}", (tree, tree)))


_NONE = ("lsmt", "LSTM", "Attn", "ｌstm", "日本", "x", "lstm1", "[/x]", "$", "bi_", "none", "1")
_NO_FUSION = ("fuse", "cascad", "Add", "ｂi", "gate2", "*")
_NO_OPTION = ("windw=3", "Window=3", "taps=2", "=3", "ｗindow=3")
_NO_TYPE = ("window=x", "window=2.5", "window=none", "window=true", "window=３", "qk_norm=perhaps")
_OUTSIDE = ("window=0", "window=-3", "window=1000000000000", "rope_base=nan", "soft_cap=0", "rope_base=inf")
# kind: (random numbers, a right layer) -> a wrong one
WRONG: dict[str, Callable[..., str]] = {
    "unknown mixer": lambda rng, tree: _named(rng, tree, _NONE, False),
    "unknown fusion": lambda rng, tree: _named(rng, tree, _NO_FUSION, True),
    "too few parts": lambda rng, tree: _without_a_part(rng, Tree("add", (tree, Tree("gru")))),
    "too many parts": lambda rng, tree: f"{tree}+{rng.choice([*NAMES])}",
    "parts of a mixer": lambda rng, tree: f"{rng.choice([*NAMES])}:{tree}",
    "fusion without parts": lambda rng, tree: f"add:{tree}+{rng.choice([*ARITIES])}",
    "behind it": lambda rng, tree: f"{tree}{rng.choice(':+@=')}",
    "before it": lambda rng, tree: f"{rng.choice(':+@=')}{tree}",
    "doubled": lambda rng, tree: _doubled(rng, tree),
    "unknown option": lambda rng, tree: _with_option(rng, tree, _NO_OPTION, "swa"),
    "no value": lambda rng, tree: _with_option(rng, tree, ("window", "window=", "window=@num_heads=2"), "swa"),
    "wrong type": lambda rng, tree: _with_option(rng, tree, _NO_TYPE, "swa"),
    "out of range": lambda rng, tree: _with_option(rng, tree, _OUTSIDE, "swa"),
    "no choice": lambda rng, tree: _with_option(rng, tree, ("position=rop", "position=Rope", "position=é"), "attn"),
    "option twice": lambda rng, tree: _with_option(rng, tree, ("window=3@window=4", "window=3@window=3"), "swa"),
    "does not fit": lambda rng, tree: _with_option(rng, tree, ("num_heads=3", "num_heads=32"), "swa"),
    "option of a fusion": lambda rng, tree: _of_a_fusion(rng, tree),
    "unicode": lambda rng, tree: _spoilt(rng, tree, ("\u200b", "é", "\x00", "\n", "𝔩", "\u202e")),
    "space": lambda rng, tree: _spoilt(rng, tree, (" ", "\t", "\u00a0")),
    "empty": lambda rng, tree: rng.choice(("", " ", "\t", "\n")),
    "too deep": lambda rng, tree: "bi:" * rng.choice((9, 40, 2000)) + str(tree),
}

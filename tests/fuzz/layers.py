"""Layers: `model.pattern` and `--mixers`, by the grammar [fusion:]name[+name], whole and broken."""

from fuzz.case import Case, nonsense, unknown, valid
from fuzz.judge import Action, Strategy

__all__ = ["LAYERS"]

_NAMES = [
    "tanh",
    "relu",
    "lstm",
    "lstmp",
    "gru",
    "mgu",
    "slstm",
    "mingru",
    "minlstm",
    "qrnn",
    "sru",
    "indrnn",
    "rglru",
    "hgrn",
    "lru",
    "s5",
    "s6",
    "linattn",
    "retnet",
    "gla",
    "hgrn2",
    "ssd",
    "mlstm",
    "deltanet",
    "gdn",
    "rwkv7",
    "conv",
    "attn",
    "swa",
    "tanhdot",
    "sink",
    "alibi",
    "chunked",
    "sha",
    "blockrec",
    "xl",
]
_FUSIONS = {"cascade": 2, "add": 2, "gate": 2, "concat": 2, "context": 2, "parallel": 2, "feed": 2, "sharnn": 1}
_WHOLE = (
    "cascade:lstm+attn",
    "add:gru+swa",
    "gate:rglru+swa",
    "concat:gru+attn",
    "context:lstm+tanhdot",
    "feed:attn+lstm",
)
_SPOILT = (
    "",
    "+",
    ":",
    ",",
    "++",
    "::",
    "lsmt",
    "LSTM",
    "ｌstm",
    "lst m",
    "\x00",
    "attn.",
    "lstm=1",
    "[/x]",
    "$",
    "é",
    "\n",
)


def _make(rng) -> Case:
    where = rng.choices(("pattern", "plan", "certify"), (7, 2, 1))[0]
    layers = [_layer(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    if where == "certify" and all(part.verdict != "nonsense" for part in layers):
        layers.append(nonsense("layer", "lsmt"))
    if where == "pattern" and rng.random() < 0.03:
        layers = [unknown("layer", ",".join(["lstm"] * 2000))]
    return Case("layers", (where,), tuple(layers))


def _layer(rng):
    fusion = rng.choice(sorted(_FUSIONS))
    names = rng.choices(_NAMES, k=_FUSIONS[fusion])
    form = rng.randrange(10)
    if form < 3:
        return valid("layer", rng.choice(_WHOLE) if form == 0 else names[0])
    if form == 3:
        return unknown("layer", f"{fusion}:{'+'.join(names)}")
    if form == 4:
        return nonsense(
            "layer", f"{fusion}:{'+'.join(rng.choices(_NAMES, k=_FUSIONS[fusion] + rng.choice((-1, 1, 5))))}"
        )
    if form == 5:
        return nonsense("layer", f"{fusion}:{fusion}:{'+'.join(names)}")
    if form == 6:
        return nonsense("layer", "+".join(names) + "+" + rng.choice(_NAMES))
    if form == 7:
        return nonsense("layer", f"{rng.choice(('fuse', 'cascad', '', 'Add', '[/x]'))}:{'+'.join(names)}")
    if form == 8:
        text = f"{fusion}:{'+'.join(names)}"
        place = rng.randrange(len(text) + 1)
        return unknown("layer", text[:place] + rng.choice(_SPOILT) + text[place + rng.randrange(3) :])
    return nonsense("layer", rng.choice(_SPOILT))


def _actions(case, here, room) -> list[Action]:
    text = ",".join(part.text for part in case.parts)
    if case.frame == ("pattern",):
        return [Action(["plan", f"--config={room / 'lm.py'}", f"--config.model.pattern={text}"])]
    if case.frame == ("plan",):
        return [Action(["plan", f"--mixers={text}", "--width=16", "--length=8"])]
    return [Action(["certify", f"--mixers={text}", "--cases=1", f"--workdir={here}"])]


LAYERS = Strategy(10, _make, _actions)

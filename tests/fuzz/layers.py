"""Layers: `model.pattern` and `--mixers`, by the grammar of layers, whole and broken."""

from fuzz.case import Case, nonsense, unknown, valid
from fuzz.grammar import ARITIES, NAMES, draw_layer, draw_wrong
from fuzz.judge import Action, Strategy

__all__ = ["LAYERS"]

_WHOLE = (
    "cascade:lstm+attn",
    "add:gru+swa",
    "gate:rglru+swa",
    "concat:gru+attn",
    "context:lstm+tanhdot",
    "feed:attn+lstm",
    "add:cascade:lstm+attn+swa@window=3",
    "gate:add:swa@window=2+swa@window=5+sharnn@window=3:gru",
    "lstm@state_width=6@peephole=true",
)
# Wrong at the width of some models only, or by what is stripped off or stands between layers.
_SIZES = ("does not fit", "empty")
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
    fusion = rng.choice(sorted(ARITIES))
    names = rng.choices(sorted(NAMES), k=ARITIES[fusion])
    form = rng.randrange(12)
    if form < 3:
        return valid("layer", rng.choice(_WHOLE) if form == 0 else names[0])
    if form == 3:
        return unknown("layer", f"{fusion}:{'+'.join(names)}")  # with a part that reads the future
    if form == 4:
        wrong = rng.choices(sorted(NAMES), k=ARITIES[fusion] + rng.choice((-1, 1, 5)))
        return nonsense("layer", f"{fusion}:{'+'.join(wrong)}")
    if form == 5:
        return unknown("layer", str(draw_layer(rng, rng.randrange(1, 4))))
    if form == 6:
        return nonsense("layer", "+".join(names) + "+" + rng.choice(sorted(NAMES)))
    if form == 7:
        return nonsense("layer", f"{rng.choice(('fuse', 'cascad', '', 'Add', '[/x]'))}:{'+'.join(names)}")
    if form == 8:
        text = str(draw_layer(rng, rng.randrange(3)))
        place = rng.randrange(len(text) + 1)
        return unknown("layer", text[:place] + rng.choice(_SPOILT) + text[place + rng.randrange(3) :])
    if form == 9:
        return nonsense("layer", rng.choice(_SPOILT))
    kind, text = draw_wrong(rng)
    return (unknown if kind in _SIZES else nonsense)("layer", text)


def _actions(case, here, room) -> list[Action]:
    text = ",".join(part.text for part in case.parts)
    if case.frame == ("pattern",):
        return [Action(["plan", f"--config={room / 'lm.py'}", f"--config.model.pattern={text}"])]
    if case.frame == ("plan",):
        return [Action(["plan", f"--mixers={text}", "--width=16", "--length=8"])]
    return [Action(["certify", f"--mixers={text}", "--cases=1", f"--workdir={here}"])]


LAYERS = Strategy(10, _make, _actions)

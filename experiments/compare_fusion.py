"""Does fusing attention with a recurrence help? Eight models of one size on five tasks.

    python launch.py compare --config=experiments/compare_fusion.py:smoke
    python launch.py compare --config=experiments/compare_fusion.py:full --jobs=2
    python launch.py --config=experiments/compare_fusion.py:recall --config.model.pattern=cascade:lstm+attn

The argument is a budget: `smoke` is a first look, 160 runs with 3 seeds, too short for most rows to show what they can
do; `full` has 5 seeds, one more learning rate and three times the steps, 280 runs (docs/fusion.md). Both go on where
they were stopped. No row has MLPs. The last line trains one model on one of the tasks: lm, sentiment, tagging, recall,
parity.

Tagging is WNUT-17 (emerging entities), in $HYBRID_FLAX_DATA/wnut17; without that variable the task is left out.

Labels of sentiment and tagging may depend on what comes later, so there every row reads both ways, each mechanism by
itself: attention without its causal mask, a recurrence beside a reversed one with its own parameters (`bi:lstm`), in
fusions as well (`cascade:bi:lstm+attn`). Heads of attention are 16 wide whatever the width of the model, and the gates
of rglru are full matrices, so that any width will do and rows can be equalised to within 2 %. Embeddings of words are
32 wide: as wide as the model, they would take nearly all parameters of sentiment and tagging.
"""

import os
import sys

from ml_collections import ConfigDict

from hybrid_flax.compare.definition import ComparedTask, Definition
from hybrid_flax.config import apply_overrides, base_config

ROWS = {  # causal, both ways
    "attn": ("attn", "attn"),
    "lstm": ("lstm", "bi:lstm"),
    "gru": ("gru", "bi:gru"),
    "rglru": ("rglru", "bi:rglru"),
    "cascade:lstm+attn": ("cascade:lstm+attn", "cascade:bi:lstm+attn"),
    "add:lstm+attn": ("add:lstm+attn", "add:bi:lstm+attn"),
    "gate:lstm+attn": ("gate:lstm+attn", "gate:bi:lstm+attn"),
    "rglru,rglru,swa": ("rglru,rglru,swa", "bi:rglru,bi:rglru,swa"),
}
BOTH_WAYS = ("sentiment", "tagging")
PARAMETERS = {"lm": 60_000, "sentiment": 400_000, "tagging": 240_000, "recall": 60_000, "parity": 40_000}
SMOKE_STEPS = {"lm": 250, "sentiment": 300, "tagging": 300, "recall": 500, "parity": 300}


def get_compare(arg: str = "smoke") -> Definition:
    """arg: smoke or full."""
    if arg not in ("", "smoke", "full"):
        raise ValueError(f"{arg!r} is none of smoke, full")
    full = arg == "full"
    tasks = {name: _compared(name, full) for name in PARAMETERS}
    if not os.environ.get("HYBRID_FLAX_DATA"):
        print("tagging is left out: HYBRID_FLAX_DATA names no folder with wnut17 in it", file=sys.stderr)
        del tasks["tagging"]
    return Definition(
        title=f"Does fusing help? {'' if full else 'Smoke budget'}".strip(),
        rows={row: _values(causal) for row, (causal, _) in ROWS.items()},
        tasks=tasks,
        budget={"parameters": 60_000},
        learning_rates=(3e-3, 1e-2, 3e-2) if full else (3e-3, 1e-2),
        seeds=5 if full else 3,
    )


def get_config(arg: str = "lm") -> ConfigDict:
    """arg: a task."""
    if (arg or "lm") not in PARAMETERS:
        raise ValueError(f"{arg!r} is none of {', '.join(PARAMETERS)}")
    return _task(arg or "lm")


def _compared(name, full):
    config = _task(name)
    if full:
        config.train.steps *= 3
        config.eval.every *= 3
    rows = {row: _values(both) for row, (_, both) in ROWS.items()} if name in BOTH_WAYS else {}
    return ComparedTask(config, {"parameters": PARAMETERS[name]}, rows)


def _values(pattern):
    return {"model.pattern": pattern, "model.depth": 3 if "," in pattern else 2}


def _task(name):
    config = base_config()
    config.model.depth = 2
    for mixer in ("attn", "swa"):
        config.mixers[mixer].head_width = 16
        config.mixers[mixer].causal = name not in BOTH_WAYS
    config.mixers.rglru.blocks = 1
    config.optim.weight_decay = 0.01
    config.schedule.warmup_steps = 20
    config.train.steps = SMOKE_STEPS[name]
    config.train.log_every = 20
    config.train.checkpoint_every = 100
    config.eval.every = config.train.steps // 5
    config.eval.batch_size = 256
    return apply_overrides(config, _OWN[name])


_LABELLED = (
    "data.mode=padded",
    "data.tokenizer=word",
    "data.min_count=2",
    "data.length=40",
    "data.batch_size=32",
    "model.embedding_width=32",
    "train.dropout=0.3",
)
_LANGUAGE = ("task.name=answer", "data.mode=padded", "eval.metric=accuracy")
_OWN = {
    "lm": ("data.length=64", "data.batch_size=16", "eval.max_batches=2"),
    "sentiment": (
        *_LABELLED,
        "task.name=classify",
        "task.pooling=max",
        "data.path=vader",
        "data.test_fraction=0.1",
        "eval.metric=accuracy",
    ),
    "tagging": (
        *_LABELLED,
        "task.name=tag",
        f"data.path={os.environ.get('HYBRID_FLAX_DATA', '')}/wnut17",
        "model.characters=cnn",
        "eval.metric=f1",
    ),
    "recall": (*_LANGUAGE, "data.path=synthetic:mqar,pairs=4,vocab_size=64", "data.length=32", "data.batch_size=32"),
    "parity": (*_LANGUAGE, "data.path=synthetic:parity", "data.length=40", "data.batch_size=32", "eval.length=128"),
}

"""How people write knobs and values: the usual abbreviations, and whole numbers with an exponent or underscores."""

import json
import re
from decimal import Decimal
from typing import Any

__all__ = ["ABBREVIATIONS", "read_value", "read_whole"]

# What is meant by names that are spelt too differently to be found by likeness.
ABBREVIATIONS: dict[str, tuple[str, ...]] = {
    "lr": ("optim.learning_rate",),
    "wd": ("optim.weight_decay",),
    "clip": ("optim.clip_norm",),
    "ema": ("optim.ema_decay",),
    "optimizer": ("optim.name",),
    "bs": ("data.batch_size",),
    "batch": ("data.batch_size",),
    "seq_len": ("data.length",),
    "dataset": ("data.path",),
    "dim": ("model.width",),
    "hidden": ("model.width", "model.mlp_ratio"),
    "layers": ("model.depth", "model.pattern"),
    "heads": ("mixers.attn.num_heads", "mixers.swa.num_heads"),
    "dropout": ("train.dropout", "train.recurrent_dropout", "train.embedding_dropout"),
    "steps": ("train.steps",),
    "epochs": ("train.steps",),
    "warmup": ("schedule.warmup_steps",),
}

_WHOLE = re.compile(r"[+-]?[0-9][0-9_]*")
_WITH_EXPONENT = re.compile(r"[+-]?[0-9][0-9_]*(\.[0-9]+)?e\+?[0-9]{1,2}", re.IGNORECASE)


def read_whole(text: str) -> int:
    """The whole number in "1000", "10_000", "1e3" or "1.5e3". Raises ValueError for any other text, as "1.5e0"."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text.replace("_", ""))
    value = Decimal(text.replace("_", "")) if _WITH_EXPONENT.fullmatch(text) else None
    if value is None or value != int(value):
        raise ValueError(f"{text!r} is no whole number")
    return int(value)


def read_value(text: str, kind: type) -> Any:
    """The bool, int, float, tuple (as JSON) or str in `text`. Raises ValueError for a text that is none."""
    if kind is str:
        return text
    if kind is tuple:
        return tuple(json.loads(text))
    if kind is int:
        return read_whole(text)
    if kind is float and text.isascii():
        return float(text)
    values = {"true": True, "1": True, "false": False, "0": False}
    if kind is not bool or text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]

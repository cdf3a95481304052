"""Predictions as lines: a label and its text, or for tags a word and its tag a line, as CoNLL has them."""

from collections.abc import Sequence

from hybrid_flax.config import ConfigError
from hybrid_flax.data.text_files import cut_tokens
from hybrid_flax.predict import predict
from hybrid_flax.tasks.registry import label_kind
from hybrid_flax.training.folder import Run

__all__ = ["print_predictions"]

_BLANK = "(blank)"


def print_predictions(run: Run, texts: Sequence[str]) -> None:
    """Tab-separated lines; a blank text has "(blank)" for a label. Raises ConfigError in one line as `predict` does."""
    try:
        predictions = predict(run, texts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    kind = label_kind(run.config.task.name)
    for text, label, confidence in predictions:
        if kind == "tags":
            words = _BLANK if label is None else "\n".join(map("\t".join, zip(cut_tokens(text), label)))
            print(words, end="\n\n")
            continue
        sure = [] if kind != "class" else ["" if confidence is None else f"{confidence:.3f}"]
        print("\t".join([_shown(label), *sure, text]))


def _shown(label):
    if label is None:
        return _BLANK
    return f"{label:.4f}" if isinstance(label, float) else label if isinstance(label, str) else ",".join(label)

"""Predictions as lines: a label and its text, or for tags a word and its tag a line, as CoNLL has them."""

from collections.abc import Sequence

from hybrid_flax.config import ConfigError
from hybrid_flax.data.text_files import cut_tokens
from hybrid_flax.predict import predict
from hybrid_flax.train.folder import Run

__all__ = ["print_predictions"]


def print_predictions(run: Run, texts: Sequence[str]) -> None:
    """Tab-separated lines, "(blank)" for a blank text; raises ConfigError in one line as `predict` does."""
    try:
        predictions = predict(run, texts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for text, label, confidence in predictions:
        if label is None:
            print("(blank)", end="\n\n" if run.config.task.name == "tag" else "\n")
        elif run.config.task.name == "tag":
            print("\n".join(f"{word}\t{tag}" for word, tag in zip(cut_tokens(text), label)), end="\n\n")
        else:
            words = f"{label:.4f}" if isinstance(label, float) else label if isinstance(label, str) else ",".join(label)
            print("\t".join([words, *([] if confidence is None else [f"{confidence:.3f}"]), text]))

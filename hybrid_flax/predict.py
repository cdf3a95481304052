"""What a run says of new texts: classes, numbers, or a tag for every word."""

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hybrid_flax.data.examples import Examples, eval_examples, make_examples
from hybrid_flax.data.readers import Record, plain_text
from hybrid_flax.data.text_files import cut_lines, cut_tokens, decode_text, find_path, read_lines
from hybrid_flax.errors import ConfigError
from hybrid_flax.registration import TASKS
from hybrid_flax.tasks.registry import label_kind, make_task
from hybrid_flax.training.folder import Run
from hybrid_flax.training.step import apply_model

__all__ = ["Prediction", "encode_texts", "predict", "read_texts"]

_SHORTEST = 16  # tokens a row; rows are powers of two long, so that few programs serve all texts


class Prediction(NamedTuple):
    """What a text was taken for.

    label: a class, a tuple of classes, a number, or a tuple of tags, one a word; None of a blank text. confidence: the
    probability of the class, None where there is no single one.
    """

    text: str
    label: Any
    confidence: float | None = None


def predict(run: Run, texts: Sequence[str], *, batch_size: int = 32) -> list[Prediction]:
    """What `run` predicts for each text, in order, read whole however long; for tags, words are `cut_tokens`.

    Raises ValueError for a run without labels, for texts that are all blank, and for one that is no text.
    """
    kind = label_kind(run.config.task.name)
    if kind is None:
        labelled = ", ".join(name for name in TASKS if label_kind(name))
        raise ValueError(f"a run of task.name={run.config.task.name} gives no labels; those of {labelled} do")
    words = [plain_text(text, "text", f"text {place}") for place, text in enumerate(texts, start=1) if text.strip()]
    if not words:
        raise ValueError(f"all of {len(texts)} texts are blank: there is nothing to label")
    examples = encode_texts(run, words, kind)
    length = max(_SHORTEST, 1 << (max(map(len, examples.tokens)) - 1).bit_length())
    apply = _make_apply(run.model, make_task(run.config, run.labels))
    found: list[Prediction] = []
    for batch in eval_examples(examples, batch_size=batch_size, length=length):
        predicted, confidence = jax.device_get(apply(run.params, batch))
        for row in range(batch_size):
            if len(found) < len(words):
                sure = float(confidence[row]) if kind == "class" else None
                label = _name(predicted[row], batch.weights[row] > 0, kind, run.labels)
                found.append(Prediction(words[len(found)], label, sure))
    answers = iter(found)
    return [next(answers) if text.strip() else Prediction(text, None) for text in texts]


def read_texts(name: str) -> list[str]:
    """The lines of a file, blank ones too, "-" for stdin. Raises ConfigError where it cannot be read or has no text."""
    try:
        if name == "-":
            lines = cut_lines(decode_text(sys.stdin.buffer.read(), name), name)
        else:
            lines = read_lines(find_path(name))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--input={name} cannot be read: {error}") from error
    if not any(map(str.strip, lines)):
        raise ConfigError(f"--input={name} has no text")
    return [line.strip() for line in lines]


def encode_texts(run: Run, texts: Sequence[str], kind: str) -> Examples:
    """Texts as examples, of labels of a kind of `examples.KINDS`; what stands for their labels is never looked at."""
    stand_in = {"class": run.labels[:1] and run.labels[0], "classes": (), "number": "0"}
    records = []
    for place, text in enumerate(texts, start=1):
        words, where = tuple(cut_tokens(text)), f"text {place}"
        if kind == "tags":
            records.append(Record(words, run.labels[:1] * len(words), where))
        else:
            records.append(Record(text, stand_in[kind], where))
    word_length = 0 if run.config.model.characters == "none" else run.config.data.word_length
    return make_examples(records, run.tokenizer, kind, run.labels, word_length)


@functools.cache
def _make_apply(model, task):
    """(params, batch) -> (predictions, the greatest probability of every row)."""

    def apply(params, batch):
        outputs, _ = apply_model(model, params, (), batch)
        predicted = task.predict(outputs, batch.weights > 0 if batch.weights.ndim == 2 else None)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return predicted, jax.nn.softmax(logits, axis=-1).max(axis=-1)

    return jax.jit(apply)


def _name(predicted, scored, kind, labels):
    if kind == "number":
        return float(predicted)
    if kind == "class":
        return labels[predicted]
    if kind == "classes":
        return tuple(name for name, given in zip(labels, predicted) if given)
    return tuple(labels[tag] for tag in np.asarray(predicted)[scored])

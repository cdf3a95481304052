"""What several runs say of the same examples, in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hybrid_flax.data.tags import are_spans
from hybrid_flax.tasks.registry import label_kind, make_task
from hybrid_flax.training.evaluate import split_batches
from hybrid_flax.training.folder import Run
from hybrid_flax.training.load import read_run
from hybrid_flax.training.setup import read_source
from hybrid_flax.training.step import apply_model

__all__ = ["Example", "Said", "most_disputed"]

_TEXT, _ANSWER = 400, 48  # characters of a text, symbols of an answer, that are shown


class Said(NamedTuple):
    """What one run predicts. right: None for numbers, which are never quite right."""

    words: str
    right: bool | None


class Example(NamedTuple):
    """An example, its label, and the predictions by the name of the run."""

    text: str
    truth: str
    said: dict[str, Said]


def most_disputed(folders: Mapping[str, Path], count: int, split: str = "test") -> list[Example]:
    """The `count` examples on which runs disagree most, among the first batch of a split; best checkpoints.

    folders: of runs of one task on the same data, by name; a run that reads other tokens is left out. Raises
    ConfigError in one line as `load_run`.
    """
    batch, first = None, None
    predicted: dict[str, list[Said]] = {}
    numbers: dict[str, np.ndarray] = {}
    for name, folder in folders.items():
        run = read_run(folder, "best")
        source = read_source(run.config, run.tokenizer, run.labels)
        own = split_batches(source, run.config, split)[0]
        named = run._replace(labels=run.labels + source.unseen)
        if batch is None:
            batch, first = own, named
        elif not np.array_equal(own.tokens, batch.tokens):
            continue
        outputs = numbers[name] = np.asarray(_predict(run, own))
        predicted[name] = [_words(named, batch, row, outputs[row]) for row in range(len(outputs))]
    if batch is None or first is None:
        return []
    rows = [row for row in range(len(batch.row)) if np.any(batch.weights[row] > 0)]
    disagreement: dict[int, Any] = {row: _disagreement([said[row] for said in predicted.values()]) for row in rows}
    if label_kind(first.config.task.name) == "number":
        disagreement = {row: float(np.std([values[row] for values in numbers.values()])) for row in rows}
    chosen = sorted(sorted(rows, key=disagreement.__getitem__, reverse=True)[:count])
    return [
        Example(
            _text(first, batch, row),
            _words(first, batch, row, batch.targets[row]).words,
            {name: said[row] for name, said in predicted.items()},
        )
        for row in chosen
    ]


def _predict(run: Run, batch) -> Any:
    task = make_task(run.config, run.labels)

    @jax.jit
    def predict(params, batch):
        outputs, _ = apply_model(run.model, params, (), batch)
        return task.predict(outputs, batch.weights > 0 if batch.weights.ndim == 2 else None)

    return predict(run.params, batch)


def _disagreement(said: Sequence[Said]) -> tuple[int, int]:
    """Whether some are right and some wrong, then how many different things are said."""
    num_right = sum(bool(one.right) for one in said)
    return min(num_right, len(said) - num_right), len({one.words for one in said})


def _text(run, batch, row):
    text = run.tokenizer.decode(_ids(batch, row))
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} ..."


def _words(run, batch, row, prediction) -> Said:
    """A prediction, or a label, of one row of a batch."""
    names, kind = run.labels, label_kind(run.config.task.name)
    if kind == "number":
        return Said(f"{float(prediction):+.2f}", None)
    if kind == "class":
        return Said(names[int(prediction)], bool(prediction == batch.targets[row]))
    if kind == "classes":
        given = [name for name, yes in zip(names, prediction) if yes]
        said, true = np.flatnonzero(prediction), np.flatnonzero(batch.targets[row])
        return Said(", ".join(given) or "(none)", np.array_equal(said, true))
    scored = batch.weights[row] > 0
    truth = batch.targets[row]
    right = prediction[scored] == truth[scored]
    if kind == "tags":
        live = batch.segments.ids[row] > 0
        tags = [names[tag] if given else None for tag, given in zip(prediction[live], scored[live])]
        shown = _spans if are_spans(names) else _tagged_words
        words = shown(run, _ids(batch, row), tags)
    else:
        shown = prediction[scored][:_ANSWER]
        symbols = [run.tokenizer.decode([symbol]) for symbol in shown]
        words = " ".join(symbol if ok else f"[{symbol}]" for symbol, ok in zip(symbols, right))
        words += f" ... ({right.sum()} of {right.size})" if right.size > _ANSWER else ""
    return Said(words, bool(right.all()))


def _ids(batch, row):
    """The tokens of a row, without padding and spelling."""
    tokens = batch.tokens[row][batch.segments.ids[row] > 0]
    return tokens if tokens.ndim == 1 else tokens[:, 0]


def _spans(run, tokens, tags):
    """The spans of BIO2 tags, "Paris LOC, Hilton PER"; a token without a tag goes on the word before it."""
    spans: list[tuple[list[int], str]] = []
    inside = False
    for token, tag in zip(tokens, tags):
        if tag is not None and tag.startswith("B-"):
            spans.append(([], tag[2:]))
            inside = True
        elif tag is not None:
            inside = inside and tag == f"I-{spans[-1][1]}"
        if inside:
            spans[-1][0].append(token)
    return ", ".join(f"{run.tokenizer.decode(ids).strip()} {kind}" for ids, kind in spans) or "(no spans)"


def _tagged_words(run, tokens, tags):
    """Words with plain tags, "a/DET film/NOUN"; a token without a tag goes on the word before it."""
    words: list[tuple[list[int], str]] = []
    for token, tag in zip(tokens, tags):
        if tag is not None:
            words.append(([], tag))
        if words:
            words[-1][0].append(token)
    shown = [f"{run.tokenizer.decode(ids).strip()}/{tag}" for ids, tag in words[:_ANSWER]]
    return " ".join([*shown, *(["..."] if len(words) > _ANSWER else [])])

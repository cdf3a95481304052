"""What a model will see: examples as text and as tokens, lengths, label counts, before anything trains."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hybrid_flax.config import ConfigError
from hybrid_flax.data.sources import cut_rows
from hybrid_flax.data.tokenizers import Tokenizer, WordTokenizer
from hybrid_flax.tasks.registry import label_kind
from hybrid_flax.training.evaluate import eval_length
from hybrid_flax.training.setup import Setup
from hybrid_flax.typing import Batch

__all__ = ["print_preview"]

_EXAMPLES, _WIDTH = 3, 110  # rows shown, characters of a line


def print_preview(setup: Setup, config: Any) -> None:
    """Print the splits of a setup's data, and the first rows of its first training batch.

    Raises ConfigError in one line for data that cannot be read.
    """
    source, kind = setup.source, label_kind(config.task.name)
    length, names = eval_length(config, source), source.labels + source.unseen
    tokenizer = source.tokenizer
    print(f"{config.data.path} for task {config.task.name}: {tokenizer.name} tokenizer, {tokenizer.vocab_size:,} ids")
    for name, split in source.splits.items():
        try:
            batches = split.batches(config.eval.batch_size, length, False)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        missed, total = split.unknown
        unknown = f", {100 * missed / total:.2f} % of them unknown" if missed else ""
        print(f"\n{name}: {_rows(batches)}{unknown}")
        if cut := cut_rows(split, config.data.length if name == "train" else length):
            print(f"  {cut}")
        for line in _label_lines(batches, names) if kind else ():
            print(f"  {line}")
    batch = setup.batches.batch(0)
    print(f"\nthe first rows of the first of {setup.batches.steps_per_epoch} training batches an epoch")
    for row in range(min(_EXAMPLES, len(batch.row))):
        print()
        for line in _example(batch, row, tokenizer, kind, names):
            print(f"  {line[:_WIDTH]}{' ...' if len(line) > _WIDTH else ''}")


def _rows(batches: Sequence[Batch]) -> str:
    lengths = np.concatenate([np.sum(batch.segments.ids > 0, axis=1) for batch in batches])
    lengths = lengths[lengths > 0]
    low, middle, high = np.percentile(lengths, (0, 50, 100)).astype(int)
    return f"{len(lengths):,} rows of {low} to {high} tokens, median {middle}, {lengths.sum():,} tokens"


def _label_lines(batches, names):
    labels = [batch.targets[batch.weights > 0] for batch in batches]
    if not names:
        values = np.concatenate(labels)
        low, high, mean, deviation = values.min(), values.max(), values.mean(), values.std()
        return [f"labels from {low:.3g} to {high:.3g}, mean {mean:.3g}, standard deviation {deviation:.3g}"]
    if labels[0].ndim == 2:
        counts = np.concatenate(labels).sum(axis=0).astype(int)
    else:
        counts = np.bincount(np.concatenate(labels), minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{names[place]} {counts[place]:,}" for place in order[:12])
    return [shown + (f" and {len(names) - 12} more labels" if len(names) > 12 else "")]


def _example(batch: Batch, row: int, tokenizer: Tokenizer, kind: str | None, names: Sequence[str]) -> Iterator[str]:
    live = batch.segments.ids[row] > 0
    tokens = batch.tokens[row][live]
    ids = tokens if tokens.ndim == 1 else tokens[:, 0]
    pieces = [tokenizer.decode([i]) for i in ids]
    yield f"text    {tokenizer.decode(ids)!r}"
    yield f"tokens  {' '.join(repr(piece)[1:-1] or '?' for piece in pieces)}"
    if tokens.ndim == 2:
        assert isinstance(tokenizer, WordTokenizer)  # no other spells
        yield f"spelt   {' '.join(map(tokenizer.unspell, tokens[:, 1:].tolist()))}"
    target = batch.targets[row]
    if kind in (None, "tags"):
        shown = names.__getitem__ if kind else lambda symbol: repr(tokenizer.decode([symbol]))[1:-1]
        scored = batch.weights[row][live] > 0
        words = " ".join(shown(symbol) if counts else "-" for symbol, counts in zip(target[live], scored))
        yield f"{'label  ' if kind else 'targets'} {words}"
    elif kind == "classes":
        yield f"label   {', '.join(name for name, given in zip(names, target) if given) or '(none)'}"
    else:
        yield f"label   {names[int(target)] if kind == 'class' else f'{target:.4g}'}"

"""Batches as pure functions of (seed, step): no iterator state to lose, any number of processes.

Those of text have as target the token after each input, which counts where it is the next token of the same document.
Positions are those inside the document as far as the model sees it. Batches for evaluation also have `num_chars` and
`num_bytes`.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.typing import Batch, Segments


class Tokens(NamedTuple):
    """Documents one after another, each array int32 [N]."""

    ids: np.ndarray
    document: np.ndarray  # 1, 2, ...: never falling; a document without tokens leaves a gap
    position: np.ndarray  # inside its document
    num_chars: np.ndarray  # of the original text under the token
    num_bytes: np.ndarray


class Batches(NamedTuple):
    """The training batches of one run."""

    batch: Callable  # (step, rows=slice(None)) -> Batch; `rows` are the global rows that this process builds
    batch_size: int  # B
    steps_per_epoch: int  # rounded up: the last batch of an epoch may begin the next one
    tokens_per_step: int  # B * T, padding included


def make_batch(
    tokens: Any, segment_ids: Any, targets: Any, weights: Any, row: Any, *, positions: Any = None, **widths: Any
) -> Batch:
    """A batch of numpy arrays in the dtypes that a step reads; tokens and targets are 0 in padding already.

    positions: by default every row is one document, with all padding behind it. widths: num_chars, num_bytes.
    """
    live = segment_ids > 0
    positions = live * (np.arange(live.shape[1]) if positions is None else positions)
    segments = Segments(segment_ids.astype(np.int32), positions.astype(np.int32))
    return Batch(tokens, segments, targets, weights.astype(np.float32), row.astype(np.int32), **widths)


def tokenize(documents: Iterable[str], tokenizer: Tokenizer) -> Tokens:
    """Encodes documents and lays them one after another."""
    encoded = [_encode(text, tokenizer) for text in documents]
    if not encoded:
        return Tokens(*(np.zeros(0, np.int32) for _ in Tokens._fields))
    ids, num_chars, num_bytes = (np.concatenate(column).astype(np.int32) for column in zip(*encoded))
    lengths = np.array([len(document_ids) for document_ids, *_ in encoded])
    document = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    return Tokens(ids, document, _ragged_arange(lengths).astype(np.int32), num_chars, num_bytes)


def _encode(text, tokenizer):
    """(ids, characters and bytes under each). Raises ValueError where they are not those of the text."""
    ids, (num_chars, num_bytes) = tokenizer.encode(text), tokenizer.widths(text)
    wanted, given = (len(text), len(text.encode())), (int(np.sum(num_chars)), int(np.sum(num_bytes)))
    if wanted != given or not len(ids) == len(num_chars) == len(num_bytes):
        raise ValueError(
            f"the {tokenizer.name} tokenizer gives {len(ids)} ids and widths of {len(num_chars)} and {len(num_bytes)}, "
            f"which sum to {given[0]} and {given[1]}, for a text of {wanted[0]} characters and {wanted[1]} bytes"
        )
    return ids, num_chars, num_bytes


def make_batches(mode: str, tokens: Tokens, *, batch_size: int, length: int, seed: int) -> Batches:
    """Training batches in one of three modes; `batch(step, rows)` depends on its arguments and `seed` alone.

    * "windows": in every epoch a random phase, then windows of `length` without overlap in random order. A
      window has no past: its first document is number 1 and its positions start at 0.
    * "stream": `batch_size` contiguous streams for truncated backpropagation; step s continues step s - 1. At
      its end a stream starts again, as new documents. `seed` plays no part.
    * "packed": documents in pieces of at most `length` inputs, packed side by side into padded rows; the rows
      come in a random order in every epoch. Each piece is a document to the model.

    Raises:
      ValueError: an unknown mode, sizes below 1, a negative seed, or too little text for one batch or window.
    """
    if mode not in MODES:
        raise ValueError(f"unknown data mode {mode!r}: one of {', '.join(MODES)}")
    _check_sizes(batch_size, length)
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    rows_of_step, steps_per_epoch = MODES[mode](tokens, batch_size, length, seed)

    def batch(step: int, rows: slice = slice(None)) -> Batch:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        return rows_of_step(int(step), np.arange(batch_size)[rows])

    return Batches(batch, batch_size, steps_per_epoch, batch_size * length)


def eval_windows(tokens: Tokens, *, batch_size: int, length: int) -> Sequence[Batch]:
    """Windows without overlap from the first token on; every target of the text has weight 1 exactly once.

    Each batch is built when it is indexed; the last window and the last batch are padded to [B, T].

    Raises:
      ValueError: sizes below 1, or no document has two tokens.
    """
    _check_evaluation(tokens, batch_size, length)
    windows = -(-(len(tokens.ids) - 1) // length)

    def batch(step: int) -> Batch:
        row = np.arange(batch_size)
        return _window_rows(tokens, (step * batch_size + row) * length, length, row, widths=True)

    return _Batches(batch, -(-windows // batch_size))


def eval_stream(tokens: Tokens, *, batch_size: int, length: int) -> Sequence[Batch]:
    """`batch_size` contiguous streams, to be run in order with carried state; every token is read once.

    Every target of the text has weight 1 exactly once, also across the seam of two streams. Each batch is
    built when it is indexed; shorter streams are padded at their end.

    Raises:
      ValueError: sizes below 1, or no document has two tokens.
    """
    _check_evaluation(tokens, batch_size, length)
    per_stream = -(-len(tokens.ids) // batch_size)

    def batch(step: int) -> Batch:
        row = np.arange(batch_size)
        local = step * length + np.arange(length)
        index = row[:, None] * per_stream + local
        live = (local < per_stream) & (index < len(tokens.ids))
        # A row past the end of the text is all padding; any token will do as its start.
        starts = np.minimum(row * per_stream, len(tokens.ids) - 1)
        segment_ids, positions = _stream_segments(tokens, starts, index, epoch=0)
        return _rows(tokens, index, index + 1, live, live, segment_ids, positions, row, widths=True)

    return _Batches(batch, -(-per_stream // length))


class _Batches(Sequence):
    """A list whose items are made when asked for: a large evaluation set is never batched all at once."""

    def __init__(self, batch: Callable, count: int):
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]  # no slices: they would be built all at once
        return self._batch(range(self._count)[step])


def _windows(tokens: Tokens, batch_size: int, length: int, seed: int) -> tuple[Callable, int]:
    num_tokens = len(tokens.ids)
    if num_tokens < length + 1:
        raise ValueError(f"windows of length {length} need {length + 1} tokens, the corpus has {num_tokens}")
    # One window less than fits at phase 0, so that every phase has equally many and each token can be first.
    per_epoch = max(1, num_tokens // length - 1)
    phases = min(length, num_tokens - length * per_epoch)

    @functools.lru_cache(maxsize=4)
    def starts_of(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        return rng.integers(phases) + length * rng.permutation(per_epoch)

    def rows_of_step(step: int, row: np.ndarray) -> Batch:
        starts = _epoch_items(starts_of, per_epoch, step * batch_size + row)
        return _window_rows(tokens, starts, length, row, widths=False)

    return rows_of_step, -(-per_epoch // batch_size)


def _stream(tokens: Tokens, batch_size: int, length: int, seed: int) -> tuple[Callable, int]:
    del seed
    num_tokens = len(tokens.ids)
    steps_per_epoch = num_tokens // (batch_size * length)
    if steps_per_epoch == 0:
        raise ValueError(
            f"{batch_size} streams of length {length} need {batch_size * length} tokens, the corpus has {num_tokens}"
        )
    per_stream = steps_per_epoch * length

    def rows_of_step(step: int, row: np.ndarray) -> Batch:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        local = step_in_epoch * length + np.arange(length)
        starts = row * per_stream
        index = starts[:, None] + local
        following = starts[:, None] + (local + 1) % per_stream
        segment_ids, positions = _stream_segments(tokens, starts, index, epoch)
        live = np.ones_like(index, bool)
        return _rows(tokens, index, following, live, following > index, segment_ids, positions, row, widths=False)

    return rows_of_step, steps_per_epoch


def _packed(tokens: Tokens, batch_size: int, length: int, seed: int) -> tuple[Callable, int]:
    """Rows are never stored: a batch is laid out from the start, size, row and column of its pieces."""
    starts, sizes = _pieces(tokens, length)
    if not len(sizes):
        raise ValueError(f"packing needs a document of 2 tokens or more; there is none among {len(tokens.ids)} tokens")
    order, piece_row, column = _pack(sizes, length, np.random.default_rng(seed))
    starts, sizes = starts[order], sizes[order]
    num_pieces = np.bincount(piece_row)
    first_piece = np.cumsum(num_pieces) - num_pieces
    num_rows = len(num_pieces)

    @functools.lru_cache(maxsize=4)
    def packed_rows_of(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(num_rows)

    def rows_of_step(step: int, row: np.ndarray) -> Batch:
        packed = _epoch_items(packed_rows_of, num_rows, step * batch_size + row)
        nth = _ragged_arange(num_pieces[packed])
        piece = np.repeat(first_piece[packed], num_pieces[packed]) + nth
        position = _ragged_arange(sizes[piece])
        at = (
            np.repeat(np.repeat(np.arange(len(row)), num_pieces[packed]), sizes[piece]),
            np.repeat(column[piece], sizes[piece]) + position,
        )
        index, segment_ids, positions = np.zeros((3, len(row), length), np.int64)
        index[at] = np.repeat(starts[piece], sizes[piece]) + position
        segment_ids[at] = np.repeat(nth + 1, sizes[piece])
        positions[at] = position
        live = segment_ids > 0
        return _rows(tokens, index, index + 1, live, live, segment_ids, positions, row, widths=False)

    return rows_of_step, -(-num_rows // batch_size)


def _pieces(tokens: Tokens, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First token and number of inputs of every piece: neighbours share a token, so no target is lost."""
    document_starts = np.flatnonzero(tokens.position == 0)
    num_inputs = np.diff(document_starts, append=len(tokens.ids)) - 1
    num_pieces = -(-num_inputs // length)
    offset = length * _ragged_arange(num_pieces)
    sizes = np.minimum(length, np.repeat(num_inputs, num_pieces) - offset)
    return np.repeat(document_starts, num_pieces) + offset, sizes


def _pack(sizes: np.ndarray, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best fit decreasing: each piece goes to the fullest row that still has room for it.

    Returns the pieces in order of row and column, and the row and column of each in that order. `rng`
    decides which of the equally long pieces become neighbours.
    """
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    row_of, column_of = np.empty_like(sizes), np.empty_like(sizes)
    rows_with_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms: list[int] = []  # those with a row, sorted: a search among at most `length` numbers, not among the rows
    num_rows = 0
    for piece, size in zip(order.tolist(), sizes[order].tolist()):
        fit = bisect.bisect_left(rooms, size)
        if fit < len(rooms):
            room = rooms[fit]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rooms[fit]
        else:
            room, row, num_rows = length, num_rows, num_rows + 1
        row_of[piece], column_of[piece] = row, length - room
        room -= size
        if room:
            if not rows_with_room[room]:
                bisect.insort(rooms, room)
            rows_with_room[room].append(row)
    by_row = np.lexsort((column_of, row_of))
    return by_row, row_of[by_row], column_of[by_row]


def _window_rows(tokens: Tokens, starts: np.ndarray, length: int, row: np.ndarray, *, widths: bool) -> Batch:
    """Rows that forget all that comes before their start; what lies past the end of the text is padding."""
    index = starts[:, None] + np.arange(length)
    live = index < len(tokens.ids)
    inside = np.minimum(index, len(tokens.ids) - 1)
    document = tokens.document[inside]
    # Counted anew, because documents without tokens leave gaps in the numbers.
    segment_ids = 1 + np.cumsum(np.diff(document, axis=1, prepend=document[:, :1]) != 0, axis=1)
    positions = np.where(segment_ids == 1, np.arange(length), tokens.position[inside])
    return _rows(tokens, index, index + 1, live, live, segment_ids, positions, row, widths=widths)


def _stream_segments(
    tokens: Tokens, starts: np.ndarray, index: np.ndarray, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions [B, T] in streams that begin at `starts` [B], perhaps inside a document."""
    index = np.minimum(index, len(tokens.ids) - 1)
    document = tokens.document[index]
    # Modulo, because a long run over many documents would overflow int32; only close ids must differ.
    instance = document.astype(np.int64) - 1 + epoch * int(tokens.document[-1])
    segment_ids = 1 + instance % (np.iinfo(np.int32).max - 1)
    unseen = np.where(document == tokens.document[starts][:, None], tokens.position[starts][:, None], 0)
    return segment_ids, tokens.position[index] - unseen


def _rows(
    tokens: Tokens,
    index: np.ndarray,
    following: np.ndarray,
    live: np.ndarray,
    counts: np.ndarray,
    segment_ids: np.ndarray,
    positions: np.ndarray,
    row: np.ndarray,
    *,
    widths: bool,
) -> Batch:
    """The batch of the inputs at `index` and their targets at `following`, [B, T]; padding where not `live`.

    A target counts where `counts` and where it is the next token of the same document.
    """
    has_target = live & (following < len(tokens.ids))
    index = np.where(live, index, 0)
    following = np.where(has_target, following, 0)
    counted = has_target & counts & (tokens.document[following] == tokens.document[index])
    targets = tokens.ids[following] * has_target
    sizes = {name: getattr(tokens, name)[following] * counted for name in ("num_chars", "num_bytes") if widths}
    return make_batch(tokens.ids[index] * live, segment_ids * live, targets, counted, row, positions=positions, **sizes)


def _epoch_items(items_of: Callable, per_epoch: int, example: np.ndarray) -> np.ndarray:
    """Looks up `items_of(epoch)[i]` for examples counted through all epochs; a batch may straddle several."""
    epoch, i = np.divmod(example, per_epoch)
    items = np.empty_like(example)
    for e in np.unique(epoch).tolist():
        items[epoch == e] = items_of(e)[i[epoch == e]]
    return items


def _ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """0 .. n - 1 for each n of `lengths`, one after another: [2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _check_sizes(batch_size: int, length: int) -> None:
    if batch_size < 1 or length < 1:
        raise ValueError(f"batch_size {batch_size} and length {length} must be at least 1")


def _check_evaluation(tokens: Tokens, batch_size: int, length: int) -> None:
    _check_sizes(batch_size, length)
    if not np.any(tokens.position > 0):
        raise ValueError(f"nothing to evaluate: no document with 2 tokens or more among {len(tokens.ids)} tokens")


# (tokens, batch_size, length, seed) -> ((step, rows [B]) -> Batch, steps per epoch)
MODES: dict[str, Callable[[Tokens, int, int, int], tuple[Callable, int]]] = {
    "windows": _windows,
    "stream": _stream,
    "packed": _packed,
}

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_flax.data.pipeline import (
    MODES,
    Tokens,
    eval_stream,
    eval_windows,
    make_batches,
    tokenize,
)
from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.typing import Batch

LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(lambda n: max(n) > 1)
SIZES = {"batch_size": st.integers(1, 5), "length": st.integers(1, 9)}


def numbered(lengths: list[int]) -> Tokens:
    """Documents of these lengths; the i-th token of all has the id i + 1, which shows where it is from."""
    total = sum(lengths)
    return Tokens(
        ids=np.arange(1, total + 1, dtype=np.int32),
        document=np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32),
        position=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        num_chars=(np.arange(total) % 3 + 1).astype(np.int32),
        num_bytes=(np.arange(total) % 5 + 1).astype(np.int32),
    )


def real_targets(tokens: Tokens) -> list[int]:
    """The ids of `numbered` tokens that have a predecessor in their own document."""
    return tokens.ids[tokens.position > 0].tolist()


def check_rows(batch: Batch, tokens: Tokens, batch_size: int, length: int) -> None:
    """What holds for every batch of `numbered` tokens, said without the builders' arithmetic."""
    arrays = jax.tree.leaves(batch._replace(row=None))
    assert all(array.dtype == np.int32 for array in arrays if array is not batch.weights)
    assert batch.row.dtype == np.int32 and batch.weights.dtype == np.float32
    assert batch.row.shape == (batch_size,)
    assert all(type(array) is np.ndarray and array.shape == (batch_size, length) for array in arrays)
    live = batch.segments.ids > 0
    assert not any(array[~live].any() for array in arrays)
    assert (batch.tokens[live] > 0).all()
    counted = batch.weights == 1
    assert set(np.unique(batch.weights)) <= {0.0, 1.0} and not (counted & ~live).any()
    assert (batch.targets[counted] == batch.tokens[counted] + 1).all()
    assert (tokens.position[batch.targets[counted] - 1] > 0).all()
    # Inside a row: the same document is the same id and positions count up; another document starts at 0.
    both = live[:, 1:] & live[:, :-1]
    same = (batch.segments.ids[:, 1:] == batch.segments.ids[:, :-1]) & both
    assert (np.diff(batch.tokens, axis=1)[same] == 1).all()
    assert (np.diff(batch.segments.positions, axis=1)[same] == 1).all()
    assert not batch.segments.positions[:, 1:][both & ~same].any()
    document = np.where(live, tokens.document[batch.tokens - 1], 0)
    assert (np.diff(document, axis=1)[same] == 0).all()
    for ids in batch.segments.ids:
        changes = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        assert len(changes) == len(set(changes.tolist()))


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def equal(a: Batch, b: Batch) -> bool:
    """Trees of other structures, None for what a batch lacks included, are an error."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)))


def end_to_end(steps: list[Batch]) -> Batch:
    """Batches as one: their rows go on from step to step."""
    first, *_ = steps
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *(step._replace(row=None) for step in steps))
    return joined._replace(row=first.row)


def build(mode: str, tokens: Tokens, batch_size: int, length: int, seed: int = 0):
    """The batches, or None where the corpus is too short for them; that it is too short is checked."""
    enough = {
        "windows": len(tokens.ids) >= length + 1,
        "stream": len(tokens.ids) >= batch_size * length,
        "packed": True,
    }[mode]
    sizes = {"batch_size": batch_size, "length": length, "seed": seed}
    if enough:
        return make_batches(mode, tokens, **sizes)
    message = error_of(make_batches, mode, tokens, **sizes)
    assert str(len(tokens.ids)) in message and str(length) in message
    return None


def test_tokenize_lays_documents_one_after_another():
    texts = ["é one\n", "", "two, two\n"]
    for name in ("byte", "char", "word"):
        tokenizer = make_tokenizer(name, texts)
        tokens = tokenize(texts, tokenizer)
        assert all(array.dtype == np.int32 and array.shape == tokens.ids.shape for array in tokens)
        assert sorted(set(tokens.document.tolist())) == [1, 3]
        for number, text in enumerate(texts, start=1):
            own = tokens.document == number
            assert tokenizer.decode(tokens.ids[own]) == text
            assert tokens.position[own].tolist() == list(range(own.sum()))
            assert tokens.num_chars[own].sum() == len(text)
            assert tokens.num_bytes[own].sum() == len(text.encode())
    assert all(array.shape == (0,) for array in tokenize([], tokenizer))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 3), steps=st.permutations(range(6)), cut=st.integers(0, 5), **SIZES)
def test_a_batch_depends_on_seed_and_step_alone(mode, lengths, seed, steps, cut, batch_size, length):
    tokens = numbered(lengths)
    batches = build(mode, tokens, batch_size, length, seed)
    if batches is None:
        return
    assert batches.steps_per_epoch >= 1 and batches.tokens_per_step == batch_size * length
    in_order = [batches.batch(step) for step in range(6)]
    again = build(mode, tokens, batch_size, length, seed)
    for step in steps:
        whole = again.batch(step)
        check_rows(whole, tokens, batch_size, length)
        assert equal(whole, in_order[step])
        for rows in (slice(0, cut), slice(cut, None), slice(None, None, 2)):
            assert equal(again.batch(step, rows), jax.tree.map(lambda array, rows=rows: array[rows], whole))
        assert whole.row.tolist() == list(range(batch_size))


@pytest.mark.parametrize("mode", ["windows", "packed"])
def test_seeds_and_epochs_differ(mode):
    tokens = numbered([7, 30, 2, 90, 11, 60])
    # Rows of one, so that an epoch ends where a batch does.
    one, other = (make_batches(mode, tokens, batch_size=1, length=8, seed=seed) for seed in (0, 1))
    epoch = range(one.steps_per_epoch)
    first = [one.batch(step).tokens.tolist() for step in epoch]
    assert first != [one.batch(step + len(epoch)).tokens.tolist() for step in epoch]
    assert first != [other.batch(step).tokens.tolist() for step in epoch]


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, epoch=st.integers(0, 5), length=st.integers(1, 9))
def test_windows_cover_an_epoch_once(lengths, epoch, length):
    tokens = numbered(lengths)
    batches = build("windows", tokens, 1, length)
    if batches is None:
        return
    per_epoch = batches.steps_per_epoch  # of one window each
    epoch_batches = [batches.batch(epoch * per_epoch + step) for step in range(per_epoch)]
    inputs = np.sort(np.concatenate([batch.tokens[0] for batch in epoch_batches]))
    # One run of the corpus without gap or repetition, which leaves out less than two windows.
    assert inputs.tolist() == list(range(inputs[0], inputs[0] + per_epoch * length))
    assert len(tokens.ids) - len(inputs) < 2 * length or per_epoch == 1
    assert inputs[0] <= length
    for batch in epoch_batches:
        assert batch.targets.tolist() == (batch.tokens + 1).tolist()
        assert batch.segments.ids[0, 0] == 1 and batch.segments.positions[0, 0] == 0
        assert set(np.diff(batch.segments.ids[0]).tolist()) <= {0, 1}


def test_windows_start_at_every_phase():
    tokens = numbered([41])
    batches = make_batches("windows", tokens, batch_size=1, length=10, seed=0)
    firsts = {int(batches.batch(step).tokens.min()) % 10 for step in range(200)}
    assert firsts == set(range(10))


def test_batches_may_straddle_epochs():
    tokens = numbered([64])
    one, five = (make_batches("windows", tokens, batch_size=b, length=9, seed=3) for b in (1, 5))
    together = np.concatenate([five.batch(step).tokens for step in range(8)])
    assert np.array_equal(together, np.concatenate([one.batch(step).tokens for step in range(40)]))


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, **SIZES)
def test_streams_continue_over_steps(lengths, batch_size, length):
    tokens = numbered(lengths)
    batches = build("stream", tokens, batch_size, length)
    if batches is None:
        return
    per_epoch = batches.steps_per_epoch
    steps = [batches.batch(step) for step in range(2 * per_epoch + 1)]
    for now, then in itertools.pairwise(steps):
        assert now.targets[:, -1].tolist() == then.tokens[:, 0].tolist()
    # Laid end to end the steps are one long batch, to which all rules of a row apply.
    row = end_to_end(steps)
    check_rows(row, tokens, batch_size, row.tokens.shape[1])
    per_stream = per_epoch * length
    starts = np.arange(batch_size) * per_stream
    assert row.tokens[:, :per_stream].tolist() == (starts[:, None] + 1 + np.arange(per_stream)).tolist()
    assert not row.segments.positions[:, [0, per_stream]].any()
    assert not row.weights[:, per_stream - 1].any()
    real = tokens.position[row.targets[:, : per_stream - 1] - 1] > 0
    assert np.array_equal(row.weights[:, : per_stream - 1], real)
    document = tokens.document[row.tokens - 1]
    epoch = np.arange(row.tokens.shape[1]) // per_stream
    assert np.array_equal(row.segments.ids, document + epoch * tokens.document[-1])


def test_stream_ids_survive_a_very_long_run():
    tokens = numbered([3, 4, 5])
    batches = make_batches("stream", tokens, batch_size=2, length=3, seed=0)
    for step in (2**31, 2**40 + 1):
        before, after = batches.batch(step).segments.ids, batches.batch(step + 1).segments.ids
        assert before.min() > 0 and after.min() > 0
    assert not np.intersect1d(batches.batch(2**31).segments.ids, batches.batch(2**31 + 2).segments.ids).size


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 3), epoch=st.integers(0, 2), length=st.integers(1, 9))
def test_packed_rows_hold_every_target_once_an_epoch(lengths, seed, epoch, length):
    tokens = numbered(lengths)
    batches = make_batches("packed", tokens, batch_size=1, length=length, seed=seed)
    per_epoch = batches.steps_per_epoch
    rows = [batches.batch(epoch * per_epoch + step) for step in range(per_epoch)]
    targets = np.concatenate([row.targets[row.weights == 1] for row in rows])
    assert sorted(targets.tolist()) == real_targets(tokens)
    for row in rows:
        check_rows(row, tokens, 1, length)
        ids = row.segments.ids[0]
        num_live = int((ids > 0).sum())
        assert num_live and ids[:num_live].all() and row.weights[0, :num_live].all()
        assert ids[0] == 1 and set(np.diff(ids[:num_live]).tolist()) <= {0, 1}
        assert row.segments.positions[0, 0] == 0


def test_packing_fills_rows_and_is_fast_enough_to_forget():
    lengths = np.random.default_rng(0).integers(2, 60, 20_000)
    tokens = numbered(lengths.tolist())
    batches = make_batches("packed", tokens, batch_size=1, length=128, seed=0)
    needed = (lengths - 1).sum() / 128
    assert needed <= batches.steps_per_epoch < 1.01 * needed + 1


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", [eval_windows, eval_stream])
@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, **SIZES)
def test_every_target_is_evaluated_exactly_once(evaluate, lengths, batch_size, length):
    tokens = numbered(lengths)
    batches = list(evaluate(tokens, batch_size=batch_size, length=length))
    targets, num_chars, num_bytes = [], 0, 0
    for i, batch in enumerate(batches):
        assert batch.num_chars is not None and batch.num_bytes is not None
        assert batch.segments.ids.any()
        check_rows(batch, tokens, batch_size, length)
        counted = batch.weights == 1
        targets += batch.targets[counted].tolist()
        assert not batch.num_chars[~counted].any() and not batch.num_bytes[~counted].any()
        num_chars, num_bytes = num_chars + batch.num_chars.sum(), num_bytes + batch.num_bytes.sum()
        assert equal(batch, evaluate(tokens, batch_size=batch_size, length=length)[i])
    assert sorted(targets) == real_targets(tokens)
    assert num_chars == tokens.num_chars[tokens.position > 0].sum()
    assert num_bytes == tokens.num_bytes[tokens.position > 0].sum()


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, **SIZES)
def test_evaluation_streams_read_every_token_once_in_order(lengths, batch_size, length):
    tokens = numbered(lengths)
    steps = list(eval_stream(tokens, batch_size=batch_size, length=length))
    row = end_to_end(steps)
    check_rows(row, tokens, batch_size, len(steps) * length)
    live = row.segments.ids > 0
    assert row.tokens[live].tolist() == tokens.ids.tolist()
    assert not (live[:, 1:] & ~live[:, :-1]).any()
    assert not row.segments.positions[:, 0].any()
    assert row.segments.ids[live].tolist() == tokens.document.tolist()


def test_the_answer_seen_by_eye():
    tokens = numbered([3, 0, 4])
    (batch,) = eval_windows(tokens, batch_size=2, length=5)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, 6], [7, 0, 0, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]
    assert batch.segments.ids.tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch.segments.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    batches = make_batches("stream", tokens, batch_size=1, length=3, seed=0)
    assert [batches.batch(step).segments.ids[0].tolist() for step in range(3)] == [
        [1] * 3,
        [3] * 3,
        [4] * 3,
    ]
    batch = make_batches("packed", tokens, batch_size=1, length=5, seed=0).batch(0)
    assert batch.tokens.tolist() == [[4, 5, 6, 1, 2]]
    assert batch.segments.ids.tolist() == [[1, 1, 1, 2, 2]]
    assert batch.segments.positions.tolist() == [[0, 1, 2, 0, 1]]


def test_errors_are_one_line_with_the_numbers():
    tokens, sizes = numbered([6, 3]), {"batch_size": 2, "length": 4, "seed": 0}
    assert ", ".join(MODES) in error_of(make_batches, "window", tokens, **sizes)
    assert "batch_size 0" in error_of(make_batches, "windows", tokens, **{**sizes, "batch_size": 0})
    assert "length 0" in error_of(make_batches, "stream", tokens, **{**sizes, "length": 0})
    assert "-1" in error_of(make_batches, "packed", tokens, **{**sizes, "seed": -1})
    assert "10 tokens" in error_of(make_batches, "windows", tokens, **{**sizes, "length": 9})
    assert "10 tokens" in error_of(make_batches, "stream", tokens, **{**sizes, "length": 5})
    assert "step -1" in error_of(make_batches("stream", tokens, **sizes).batch, -1)
    single = numbered([1, 1, 1])
    assert "3 tokens" in error_of(make_batches, "packed", single, **sizes)
    for evaluate in (eval_windows, eval_stream):
        assert "3 tokens" in error_of(evaluate, single, batch_size=2, length=4)
        assert "0 tokens" in error_of(evaluate, tokenize([], make_tokenizer("byte", [])), batch_size=2, length=4)
        assert "batch_size 0" in error_of(evaluate, tokens, batch_size=0, length=4)

"""Documents and padding against plain loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid_flax import Segments
from hybrid_flax.certify.checks import check_same
from hybrid_flax.certify.subjects import normal, segments_of
from hybrid_flax.ops import segments as ops
from hybrid_flax.ops.segments import FRESH

BATCH, LENGTH = 2, 10
ROWS = st.lists(st.text("...npp", min_size=LENGTH, max_size=LENGTH), min_size=BATCH, max_size=BATCH)
CARRIED = st.lists(st.sampled_from([FRESH, 1, 2, 9]), min_size=BATCH, max_size=BATCH)

previous_ids, last_live_id, resets = (jax.jit(f) for f in (ops.previous_ids, ops.last_live_id, ops.resets))
document_positions, compaction = jax.jit(ops.document_positions), jax.jit(ops.compaction)


@example(["p" * LENGTH, "." * LENGTH], [9, FRESH])
@given(ROWS, CARRIED)
def test_documents_before_each_token(rows, carried):
    ids = segments_of(rows).ids
    before, reset = np.zeros_like(ids), np.zeros(ids.shape, bool)
    latest = np.array(carried, np.int32)
    for b in range(BATCH):
        for t in range(LENGTH):
            before[b, t] = latest[b]
            if ids[b, t] > 0:
                reset[b, t] = latest[b] not in (FRESH, ids[b, t])
                latest[b] = ids[b, t]
    given_ids = np.array(carried, np.int32)
    check_same(previous_ids(ids, given_ids), before)
    check_same(last_live_id(ids, given_ids), latest)
    check_same(resets(ids, given_ids), reset)


@example(["pp...n.p.n", "p" * LENGTH])
@given(ROWS)
def test_positions_count_live_tokens(rows):
    segments = segments_of(rows)
    check_same(document_positions(segments.ids), segments.positions)


@given(ROWS)
def test_compaction_keeps_the_order_of_live_tokens(rows):
    live = segments_of(rows).ids > 0
    order, inverse = jax.device_get(compaction(live))
    for b in range(BATCH):
        wanted = [t for t in range(LENGTH) if live[b, t]] + [t for t in range(LENGTH) if not live[b, t]]
        assert order[b].tolist() == wanted
        assert order[b][inverse[b]].tolist() == list(range(LENGTH))


@jax.jit
def permute_pull(x, order, inverse, dy):
    y, pullback = jax.vjp(lambda x: ops.permute(x, order, inverse), x)
    return y, *pullback(dy)


@given(ROWS, st.integers(0, 2**32 - 1))
def test_permute_and_its_gradient(rows, seed):
    rng = np.random.default_rng(seed)
    order, inverse = jax.device_get(compaction(segments_of(rows).ids > 0))
    x, dy = normal(rng, 2, BATCH, LENGTH, 3)
    y, dx = permute_pull(x, order, inverse, dy)
    wanted = np.zeros_like(x)
    for b in range(BATCH):
        wanted[b][order[b]] = dy[b]
    check_same(y, np.take_along_axis(x, order[..., None], axis=1))
    check_same(dx, wanted)


def test_permute_takes_integers():
    order = jnp.array([[2, 0, 1]])
    assert ops.permute(jnp.array([[5, 6, 7]]), order, jnp.array([[1, 2, 0]])).tolist() == [[7, 5, 6]]


@pytest.mark.parametrize("offset", [0, 7])
def test_one_document_a_row(offset):
    segments = Segments.single(2, 3, offset)
    assert segments.ids.tolist() == [[1, 1, 1]] * 2
    assert segments.positions.tolist() == [[offset, offset + 1, offset + 2]] * 2
    assert segments.ids.dtype == segments.positions.dtype == jnp.int32

"""The certificate over the registry: a name added to it is tested here without another line."""

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conformance import certificate
from conformance.certificate import BATCH, CHUNKS, DOCUMENTS, LENGTH, Segments
from hybrid_flax import make_mixer, registered_mixers

SEEDS = st.integers(0, 2**32 - 1)
LETTERS = st.sampled_from("......nnpp")
ROWS = st.lists(st.text(LETTERS, min_size=LENGTH, max_size=LENGTH), min_size=BATCH, max_size=BATCH)
NUM_PADS = LENGTH - sum(DOCUMENTS)
ORDERS = st.lists(st.permutations(range(len(DOCUMENTS))), min_size=BATCH, max_size=BATCH)
PADS = st.lists(
    st.lists(st.integers(0, LENGTH - 1), min_size=NUM_PADS, max_size=NUM_PADS, unique=True),
    min_size=BATCH,
    max_size=BATCH,
)
DECODE = (1,) * LENGTH
MIXED = ["..n..p..p.n....p", "pp.........n....", "n....p.....ppp.."]


@st.composite
def splits(draw):
    """Chunk lengths from CHUNKS that add up to LENGTH."""
    lengths = []
    while (left := LENGTH - sum(lengths)) > 0:
        lengths.append(draw(st.sampled_from([length for length in CHUNKS if length <= left])))
    return lengths


@pytest.fixture(scope="module", params=registered_mixers())
def subject(request):
    return certificate.registered(request.param)


@pytest.fixture(scope="module")
def causal(subject):
    if not subject.mixer.traits.causal:
        pytest.skip("reads the future and takes no state")
    return subject


@example(MIXED, DECODE, 0)
@given(ROWS, splits(), SEEDS)
def test_one_call_equals_any_split(causal, rows, split, seed):
    certificate.any_split(causal, rows, split, seed)


@given(ORDERS, PADS, SEEDS)
def test_packed_documents_equal_each_alone(subject, orders, pads, seed):
    certificate.packing(subject, orders, pads, seed)


@given(SEEDS)
def test_padding_equals_none(subject, seed):
    certificate.left_padding(subject, seed)


@given(ROWS, st.permutations(range(BATCH)), SEEDS)
def test_rows_are_independent(subject, rows, order, seed):
    certificate.rows_independent(subject, rows, order, seed)


@example(MIXED, 0)
@given(ROWS, SEEDS)
def test_garbage_in_padding_changes_nothing(subject, rows, seed):
    certificate.garbage_in_padding(subject, rows, seed)


@example(["." * LENGTH] * BATCH, 8, 0)
@given(ROWS, st.integers(0, LENGTH - 1), SEEDS)
def test_causality_and_borders_of_documents(subject, rows, t, seed):
    certificate.causality(subject, rows, t, seed)


def test_reach(subject):
    certificate.reach(subject, 0)


def test_gradient_stops_at_a_state_from_outside(causal):
    certificate.state_is_cut(causal, 0)


def test_state_contract(causal):
    certificate.state_contract(causal)


def test_second_call_does_not_compile(subject):
    certificate.compiles_once(subject, 0)
    name = subject.name
    assert make_mixer(name, certificate.WIDTH, **certificate.narrowed(name)) is subject.mixer


def test_bfloat16(subject):
    certificate.bfloat16(subject, 0)


def test_jit_equals_eager(subject):
    certificate.jit_equals_eager(subject, 0)


def test_rows_of_padding_have_finite_gradients(subject):
    certificate.finite_gradients(subject, 0)


def test_initial_parameters(subject):
    certificate.initial_parameters(subject)


def test_state_is_refused_by_what_reads_the_future(subject):
    if subject.mixer.traits.causal:
        pytest.skip("causal")
    certificate.refuses_state(subject)


@pytest.mark.slow
@pytest.mark.parametrize("name", registered_mixers())
def test_long_sequences_have_finite_gradients(name):
    """At initial parameters: a ReLU recurrence with noise in it grows without bound, rightly."""
    length, width = 4096, 8
    mixer = make_mixer(name, width, **certificate.narrowed(name, num_heads=1))
    subject = certificate.make_subject(name, mixer, batch=1, capacity=1)
    rng = np.random.default_rng(0)
    x, dy = certificate.normal(rng, 2, 1, length, width)
    segments = jax.tree.map(np.asarray, Segments.single(1, length))
    y, *gradients = subject.pull(subject.base, x, segments, None, dy)
    certificate.assert_finite((y, gradients))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))


CELL_FORMS = [
    (name, form) for name in certificate.registered_cells() for form in ("sequential", *certificate.cell_of(name).forms)
]


@pytest.mark.parametrize("name,form", [pair for pair in CELL_FORMS if pair[1] in ("sequential", "deferred")])
@example(MIXED, DECODE, 0)
@given(ROWS, splits(), SEEDS)
def test_recurrence_is_the_same_bit_for_bit(name, form, rows, split, seed):
    certificate.recurrence_bits(certificate.registered_cell(name), form, rows, split, seed)


@pytest.mark.parametrize("name,form", CELL_FORMS)
@example(MIXED, 0)
@given(ROWS, SEEDS)
def test_forms_agree_with_float64(name, form, rows, seed):
    certificate.forms_agree(certificate.registered_cell(name), form, rows, seed)

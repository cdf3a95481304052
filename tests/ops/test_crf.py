"""The CRF against every path there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.ops.crf import Transitions, best_path, log_likelihood, log_partition, path_score

BATCH, LENGTH, TAGS = 5, 6, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    emissions = rng.standard_normal((BATCH, LENGTH, TAGS)).astype(np.float32)
    transitions = Transitions(*(rng.standard_normal(s).astype(np.float32) for s in ((TAGS,), (TAGS, TAGS), (TAGS,))))
    tags = rng.integers(0, TAGS, (BATCH, LENGTH)).astype(np.int32)
    live = np.array(["......", "..pp..", "ppp.pp", "p.p.p.", "pppppp"], "U6").view("U1").reshape(BATCH, LENGTH) == "."
    return jax.tree.map(jnp.asarray, (emissions, tags, live, transitions))


def score(path, emissions, transitions):
    between = sum(transitions.between[a, b] for a, b in itertools.pairwise(path))
    ends = transitions.start[path[0]] + transitions.end[path[-1]]
    return float(ends + between + sum(emission[tag] for emission, tag in zip(emissions, path)))


def test_equals_brute_force(case):
    partition, given, path, likelihood = jax.jit(
        lambda e, t, m, tr: (
            log_partition(e, m, tr),
            path_score(e, t, m, tr),
            best_path(e, m, tr),
            log_likelihood(e, t, m, tr),
        )
    )(*case)
    emissions, tags, live, transitions = jax.tree.map(np.asarray, case)
    for b in range(BATCH):
        places = np.flatnonzero(live[b])
        if not len(places):
            assert partition[b] == given[b] == likelihood[b] == 0 and not np.any(path[b])
            continue
        inside = emissions[b, places].astype(np.float64)
        paths = list(itertools.product(range(TAGS), repeat=len(places)))
        scores = np.array([score(p, inside, transitions) for p in paths])
        assert partition[b] == pytest.approx(np.logaddexp.reduce(scores), rel=1e-5)
        assert given[b] == pytest.approx(score(tags[b, places], inside, transitions), rel=1e-5)
        assert likelihood[b] == pytest.approx(float(given[b] - partition[b]), rel=1e-5)
        assert tuple(np.asarray(path)[b, places]) == paths[int(np.argmax(scores))]
        assert not np.any(np.asarray(path)[b, ~live[b]])


def test_gradient_is_the_difference_of_counts(case):
    """d log p / d emissions is the one-hot path less the marginals, which sum to one at every live place."""
    emissions, tags, live, transitions = case
    gradient = jax.grad(lambda e: jnp.sum(log_likelihood(e, tags, live, transitions)))(emissions)
    live = np.asarray(live)
    assert np.all(np.asarray(gradient)[~live] == 0)
    marginals = jax.nn.one_hot(tags, TAGS) - gradient
    assert np.allclose(np.sum(marginals, axis=-1)[live], 1.0, atol=1e-5)
    assert np.all(np.asarray(marginals)[live] > 0)


def test_forbidden_moves_are_never_taken(case):
    emissions, _, live, transitions = case
    forbidden = transitions._replace(between=transitions.between - 1e9 * np.eye(TAGS, dtype=np.float32))
    path, live = np.asarray(best_path(emissions, live, forbidden)), np.asarray(live)
    for b in range(BATCH):
        assert all(x != y for x, y in itertools.pairwise(path[b, live[b]]))

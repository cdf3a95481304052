"""The certificate over the registry: a name added to it is tested here without another line."""

import jax
import numpy as np
import pytest
from sampling import FAMILIES, sampled, sources

from hybrid_flax import make_mixer, registered_mixers
from hybrid_flax.cells import diagonal, gated, minimal
from hybrid_flax.certify import PROPERTIES, certify, checks, proofs, prove, subjects
from hybrid_flax.mixers import registry
from hybrid_flax.mixers.registry import make_cell, registered_instances
from hybrid_flax.typing import Segments

ROWS = ("..n..p..p.n....p", "pp.........n....", "n....p.....ppp..")
DECODE = (1,) * subjects.LENGTH
# Options that make another recurrence of a registered cell.
VARIANTS = {
    "lstm-peephole-norm": (gated.lstm, {"peephole": True, "layer_norm": True}),
    "gru-original": (gated.gru, {"reset_after": False}),
    "slstm-exp": (gated.slstm, {"forget_gate": "exp"}),
    "sru-affine": (minimal.sru, {"peephole": False}),
    "hgrn-real-bounded": (diagonal.hgrn, {"use_phase": False, "lower_bound": 0.5}),
}


@pytest.fixture(autouse=True)
def _programs_of_a_mixer_are_dropped():
    """Only those: the single operations of mixers that are run eagerly are shared by all, and stay compiled."""
    yield
    subjects.subject_of.cache_clear()
    subjects.cell_subject_of.cache_clear()


@pytest.mark.parametrize("name", sampled(registered_instances(), FAMILIES))
def test_registered(name):
    """Random cases, and decoding token by token, with the programs of one subject."""
    (findings,) = certify([name], cases=39, properties=[key for key in PROPERTIES if key != "jit"])
    assert [finding for finding in findings if finding.counterexample is not None] == []
    asked = {finding.property for finding in findings}
    assert asked >= PROPERTIES.keys() - {"split", "cut", "state", "bits", "forms", "refuse", "jit"}
    if "split" in asked:
        prove(name, "split", rows=ROWS, split=DECODE, seed=0)
    if "bits" in asked:
        prove(name, "bits", form="sequential", rows=ROWS, split=DECODE, seed=0)
    assert make_mixer(name, subjects.WIDTH, **subjects.narrowed(name)) is subjects.registered(name).mixer


@pytest.mark.parametrize("name", sampled(registered_instances(), ("lstm", "swa", "gate:lstm+attn")))
def test_compiled_programs_compute_what_single_operations_do(name):
    prove(name, "jit", seed=0)


def test_what_a_change_touches():
    """Every module that mixers are made in has a mixer in the sample; a mixer is touched through what it imports."""
    cell, fusion = sources("lru"), sources("gate:lstm+attn")
    assert {"hybrid_flax/cells/diagonal.py", "hybrid_flax/mixers/recurrent.py", "hybrid_flax/ops/scan.py"} <= cell
    assert {"hybrid_flax/cells/gated.py", "hybrid_flax/mixers/attention.py", "hybrid_flax/mixers/fusion.py"} <= fusion
    assert not {"hybrid_flax/cells/gated.py", "hybrid_flax/mixers/attention.py"} & cell
    everything = set().union(*map(sources, registered_instances()))
    assert everything == set().union(*map(sources, FAMILIES))


def test_cells_and_causal_mixers_are_asked_what_they_should_be():
    kinds = {name: proofs._kinds(name) for name in registered_instances()}
    single = [name for name in registered_mixers() if ":" not in name]
    cells = {name for name in single if make_cell(name, subjects.WIDTH) is not None}
    assert {name for name, kind in kinds.items() if "cell" in kind} == cells and len(cells) > 20
    assert all(("anticausal" in kind) == name.startswith("bi:") for name, kind in kinds.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name, monkeypatch):
    monkeypatch.setattr(registry, "_primitives", dict(registry._primitives))
    build, options = VARIANTS[name]
    registry.register_cell(name, build, **options)
    (findings,) = certify([name], cases=25)
    assert [finding for finding in findings if finding.counterexample is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", registered_mixers())
def test_long_sequences_have_finite_gradients(name):
    """At initial parameters: a ReLU recurrence with noise in it grows without bound, rightly."""
    length, width = 4096, 8
    mixer = make_mixer(name, width, **subjects.narrowed(name, num_heads=1))
    subject = subjects.make_subject(name, mixer, batch=1, capacity=1)
    rng = np.random.default_rng(0)
    x, dy = subjects.normal(rng, 2, 1, length, width)
    segments = jax.tree.map(np.asarray, Segments.single(1, length))
    # A branch that starts shut (a scale of zero) is opened, or its parameters would have no gradient yet.
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf + 0.1 if path[-1].key == "scale" and not np.any(leaf) else leaf, subject.base
    )
    y, *gradients = subject.pull(params, x, segments, None, dy)
    checks.check_finite((y, gradients))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))

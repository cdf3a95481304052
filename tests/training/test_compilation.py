"""Hyperparameters are data: another value of them, or a model built again, compiles nothing."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from hybrid_flax import Mixer, Traits, register_mixer
from hybrid_flax.certify import certify
from hybrid_flax.generate import generate
from hybrid_flax.mixers import registry
from hybrid_flax.models.build import init_params
from hybrid_flax.runs import load_run
from hybrid_flax.training.evaluate import evaluate_split
from hybrid_flax.training.loop import train
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state, make_train_step

_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compilations.append(event) if event.endswith("backend_compile_duration") else None
)


def num_compilations(action) -> int:
    before = len(_compilations)
    action()
    return len(_compilations) - before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap", "shard_map"])
def test_second_trial_compiles_nothing(kind, text, tmp_path):
    """A whole run, evaluation included, with other values of what may change from trial to trial."""
    fixed = {"train__parallel": kind, "eval__every": 3, "train__steps": 3, "data__mode": "stream"}
    fixed |= {"model__pattern": "gru", "model__width": 6}
    first = {"optim__learning_rate": 1e-3, "optim__weight_decay": 0.0, "train__dropout": 0.1, "optim__b1": 0.9}
    second = {"optim__learning_rate": 3e-2, "optim__weight_decay": 0.2, "train__dropout": 0.3, "optim__b1": 0.8}
    for values, rate in ((first, 0.1), (second, 0.2)):
        values |= {f"train__{kind}_dropout": rate for kind in ("embedding", "word", "recurrent")}
    second |= {"seed": 3, "optim__clip_norm": 0.5, "optim__b2": 0.95, "optim__epsilon": 1e-6}
    assert num_compilations(lambda: train(tiny.tiny_config(text, **fixed, **first), tmp_path / "first")) > 0
    assert num_compilations(lambda: train(tiny.tiny_config(text, **fixed, **second), tmp_path / "second")) == 0
    if kind != "jit":
        return
    changed = fixed | second | {"train__steps": 4}  # a schedule of another length is another program
    assert num_compilations(lambda: train(tiny.tiny_config(text, **changed), tmp_path / "third")) > 0


def test_a_model_compiles_one_step_and_one_evaluation_for_languages_of_all_lengths():
    """Rows of training, validation and test differ in length; languages of equal symbols share the programs."""
    values = {"task__name": "answer", "data__mode": "padded", "data__length": 6, "eval__length": 20}
    values |= {"model__pattern": "tanh", "model__width": 5, "train__parallel": "jit", "eval__batch_size": 128}

    def run(language):
        config = tiny.tiny_config(f"synthetic:{language}", **values)
        setup = make_setup(config)
        model, task, spec, parallel = setup.model, setup.task, setup.traits, setup.parallel
        params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
        state = init_train_state(params, setup.hparams, spec, jax.random.key(1))
        step = parallel.wrap(make_train_step(model, task, spec, parallel.axis_name))

        def steps():
            nonlocal state
            for index in range(3):
                state, _, _ = step(state, (), setup.batches.batch(index))

        counts = [num_compilations(steps)]
        for split in ("valid", "test"):
            counts.append(num_compilations(lambda split=split: evaluate_split(setup, config, state.params, split)))
        return counts

    assert run("parity") == [1, 1, 0]
    assert run("even_pairs") == [0, 0, 0]


def gain(power, leak=0):
    """A builder of y_t = gain^power x_(t + leak): a user's mixer, changed from one registration to the next."""

    def build(width: int) -> Mixer:
        def apply(params, x, segments, state=None):
            y = jnp.square(x) if power == 2 else jnp.roll(x, -leak, axis=1)
            return jnp.where((segments.ids > 0)[..., None], params["scale"][None, None] * y, 0), state

        return Mixer(lambda key: {"scale": jnp.ones(width)}, lambda batch, capacity: {}, apply, Traits())

    return build


def test_a_mixer_registered_again_is_the_new_one_everywhere(text, tmp_path, monkeypatch):
    """In the train step, evaluations, samples and the certificate; the same function again compiles nothing."""
    monkeypatch.setattr(registry, "_primitives", dict(registry._primitives))

    def outcome(name, folder):
        values = {"model__pattern": name, "eval__every": 3, "train__steps": 3, "optim__learning_rate": 0.1}
        train(tiny.tiny_config(text, **values), tmp_path / folder)
        run = load_run(tmp_path / folder)
        sample = "".join(generate(run, "a", num_tokens=20, seed=1))
        rows = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return rows, sample, jax.tree.leaves(jax.device_get(run.params))

    def same(one, other):
        return one[:2] == other[:2] and all((a == b).all() for a, b in zip(one[2], other[2], strict=True))

    def certified(name):
        ((finding,),) = certify([name], cases=1, properties=["causal"])
        return finding.counterexample is None

    first, second = gain(1), gain(2)
    register_mixer("mine", first)
    before = outcome("mine", "before")
    assert certified("mine")
    register_mixer("mine", second)
    register_mixer("other", second)
    after = outcome("mine", "after")
    assert same(after, outcome("other", "other")) and not same(after, before)
    register_mixer("mine", second)
    assert num_compilations(lambda: outcome("mine", "again")) == 0
    register_mixer("mine", gain(1, leak=1))
    assert not certified("mine")
    register_mixer("mine", first)
    assert certified("mine")

"""Hyperparameters are data: another value of them, or a model built again, compiles nothing."""

import jax
import pytest
import tiny

from hybrid_flax.train.loop import train

_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compilations.append(event) if event.endswith("backend_compile_duration") else None
)


def num_compilations(action) -> int:
    before = len(_compilations)
    action()
    return len(_compilations) - before


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

"""Trains tiny models under one map and several, on four CPU devices; prints what came out as JSON.

python maps_script.py TEXT_FILE MODE
"""

import json
import sys

import jax
import numpy as np
import tiny

from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import make_experiment
from hybrid_flax.train.loop import _Position, _start_or_resume
from hybrid_flax.train.parallel import make_parallel
from hybrid_flax.train.step import make_train_step

MAPS = [("jit", 1), ("pmap", 2), ("pmap", 4), ("shard_map", 1), ("shard_map", 2), ("shard_map", 4)]
NUM_STEPS = 200


class _NoCheckpoints:
    def latest(self):
        return None


def run(config, kind, num_devices):
    """(loss of every step, final parameters, final carry) under one map."""
    devices = jax.devices()[:num_devices]
    experiment = make_experiment(config)._replace(parallel=make_parallel(kind, devices))
    parallel = experiment.parallel
    step_fn = parallel.wrap(make_train_step(experiment.model, experiment.task, experiment.spec, parallel.axis_name))
    state, carry = _start_or_resume(experiment, config, _NoCheckpoints())
    rows, losses = parallel.rows(experiment.batch_size), []
    for step in range(NUM_STEPS):
        batch = parallel.put_rows(experiment.batches.batch(step, rows))
        state, carry, _ = step_fn(state, carry, batch)
        jax.block_until_ready(state.step)
        losses.append(float(state.sums["loss"] / state.sums["count"]))
    params, carry = jax.device_get((state.params, parallel.get_rows(carry)))
    metrics = evaluate(
        experiment.model,
        experiment.task,
        state.params,
        experiment.tokens["valid"],
        parallel,
        batch_size=8,
        length=8,
        carried=experiment.carried,
    )
    return losses, params, carry, metrics


def distance(one, other):
    """Largest max|a - b| / max|b| over the leaves."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max((float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in pairs), default=0.0)


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def main():
    text_file, mode = sys.argv[1:]
    config = tiny.tiny_config(
        text_file,
        data__mode=mode,
        data__batch_size=8,
        data__document="paragraph",
        eval__batch_size=8,
        train__dropout=0.2,
        train__log_every=1,
        train__steps=NUM_STEPS,
        optim__name="adamw",
        optim__weight_decay=0.01,
    )
    runs = {f"{kind} {n}": run(config, kind, n) for kind, n in MAPS}
    losses, params, carry, metrics = runs["jit 1"]
    batch = make_experiment(config).batches.batch(0)
    print(
        json.dumps(
            {
                "tokens per row": np.sum(batch["weights"], axis=1).tolist(),
                "loss": {
                    name: max(abs(a - b) / b for a, b in zip(other[0], losses, strict=True))
                    for name, other in runs.items()
                },
                "first losses": losses[:3],
                "last losses": losses[-3:],
                "params": {name: distance(other[1], params) for name, other in runs.items()},
                "carry": {name: distance(other[2], carry) for name, other in runs.items()},
                "eval": {name: abs(o[3]["loss"] - metrics["loss"]) / metrics["loss"] for name, o in runs.items()},
                "same bits": {n: same_bits(runs[f"pmap {n}"], runs[f"shard_map {n}"]) for n in (2, 4)},
            }
        )
    )


if __name__ == "__main__":
    main()

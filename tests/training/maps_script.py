"""Trains one tiny model under every map on four CPU devices; prints as JSON how far they are from jit on one.

python maps_script.py TEXT_FILE MODE
"""

import json
import sys

import jax
import numpy as np

from hybrid_flax.training.evaluate import evaluate
from hybrid_flax.training.parallel import make_parallel
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import make_train_step

sys.path.insert(0, f"{__file__.rpartition('/')[0]}/..")
from tiny import tiny_config

MAPS = [("jit", 1), ("pmap", 2), ("pmap", 4), ("shard_map", 1), ("shard_map", 2), ("shard_map", 4)]
NUM_STEPS = 200
PATTERNS = {"windows": "gru", "packed": "gru", "stream": "cascade:lstm+swa"}

_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compilations.append(event) if event.endswith("backend_compile_duration") else None
)


def uneven(batch, step):
    """The batch with targets left out: the later the row, the more; in other places at every step."""
    num_rows, length = batch.weights.shape
    rng = np.random.default_rng(step)
    kept = rng.random((num_rows, length)) < np.linspace(1.0, 0.2, num_rows)[:, None]
    return batch._replace(weights=batch.weights * kept.astype(np.float32))


def equal_rows(batch):
    """The batch with weights that make every row count the same: what means of means would compute."""
    count = np.maximum(np.sum(batch.weights, axis=1, keepdims=True), 1.0)
    return batch._replace(weights=batch.weights / count)


def run(setup, config, kind, num_devices, change=lambda batch: batch):
    """(loss of every step, final parameters, final carry, evaluation, late compilations) under one map."""
    parallel = make_parallel(kind, jax.devices()[:num_devices])
    setup = setup._replace(parallel=parallel)
    step_fn = parallel.wrap(make_train_step(setup.model, setup.task, setup.traits, parallel.axis_name))
    state, carry = fresh_position(setup, config)
    losses, compiled = [], 0
    for step in range(NUM_STEPS):
        batch = parallel.put_rows(change(uneven(setup.batches.batch(step), step)))
        state, carry, _ = step_fn(state, carry, batch)
        jax.block_until_ready(state.step)
        losses.append(float(state.sums["loss"]) / float(state.sums["count"]))
        compiled = compiled or len(_compilations)
    compiled = len(_compilations) - compiled
    batches = setup.source.splits["valid"].batches(8, 8, setup.carried)
    how = {"carried": setup.carried, "max_batches": 4}
    metrics = evaluate(setup.model, setup.task, state.params, batches, parallel, **how)
    params, carry = jax.device_get((state.params, parallel.get_rows(carry)))
    return losses, params, carry, metrics["loss"], compiled


def distance(one, other):
    """Largest max|a - b| / max|b| over the leaves."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max((float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in pairs), default=0.0)


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def main():
    text_file, mode = sys.argv[1:]
    config = tiny_config(
        text_file,
        data__mode=mode,
        model__pattern=PATTERNS[mode],
        data__batch_size=8,
        data__document="paragraph",
        eval__batch_size=8,
        train__dropout=0.2,
        train__locked_dropout=True,
        train__embedding_dropout=0.1,
        train__word_dropout=0.1,
        train__recurrent_dropout=0.2,
        train__log_every=1,
        train__steps=NUM_STEPS,
        optim__weight_decay=0.01,
    )
    setup = make_setup(config)
    runs = {f"{kind} {num_devices}": run(setup, config, kind, num_devices) for kind, num_devices in MAPS}
    losses, params, carry, metric, _ = runs["jit 1"]
    wrong = run(setup, config, "jit", 1, equal_rows)
    report = {
        "targets per row": np.sum(uneven(setup.batches.batch(0), 0).weights, axis=1).tolist(),
        "first loss": losses[0],
        "last loss": losses[-1],
        "loss": {name: max(abs(a - b) / b for a, b in zip(other[0], losses)) for name, other in runs.items()},
        "params": {name: distance(other[1], params) for name, other in runs.items()},
        "carry": {name: distance(other[2], carry) for name, other in runs.items()},
        "eval": {name: abs(other[3] - metric) / metric for name, other in runs.items()},
        "late compilations": {name: other[4] for name, other in runs.items()},
        "same bits": {str(n): same_bits(runs[f"pmap {n}"], runs[f"shard_map {n}"]) for n in (2, 4)},
    }
    report["wrong mean"] = distance(wrong[1], params)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

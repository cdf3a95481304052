"""Which mechanisms track a state: parity and counting modulo 3 and 5, trained to length 40, tested to 256.

    python benchmarks/state_tracking.py                                  # the table in docs/state_tracking.md
    python benchmarks/state_tracking.py --layers=lstm,gla --languages=parity --seeds=1

Every layer gets the config of experiments/state_tracking.py, the same learning rates, steps and seeds. The figure is
the test accuracy in % (the targets from the 41st symbol on, in 512 rows of 41 to 256 symbols) of the best run: the one
that is most often right on rows as long as those of training (that accuracy stands behind it in brackets), then on the
test rows. All runs are in one process, where a program is compiled once for a layer and a language.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax

from hybrid_flax.config import apply_overrides, load_config
from hybrid_flax.models.build import init_params
from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import make_experiment
from hybrid_flax.train.step import init_train_state, make_train_step

NEGATIVE = "negative_eigenvalues=true"
LAYERS = (
    "tanh",
    "lstm",
    "gru",
    "slstm",
    f"deltanet.{NEGATIVE}",
    "gdn",
    "mingru",
    "rglru",
    "s6",
    "linattn",
    "gla",
    "mlstm",
    "attn",
)
LANGUAGES = ("parity", "counting,modulus=3", "counting,modulus=5")
EXPERIMENT = Path(__file__).parents[1] / "experiments" / "state_tracking.py"


def main() -> None:
    """Train the grid and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--languages", default=" ".join(LANGUAGES))
    parser.add_argument("--rates", default="3e-3,1e-2")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    languages = options.languages.split()
    rates = [float(rate) for rate in options.rates.split(",")]
    print(
        f"Learning rates {options.rates}, seeds 0 to {options.seeds - 1}, {options.steps} steps of 64 rows; "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}.\n"
    )
    print("| layer | " + " | ".join(languages) + " | seconds a run |")
    print("|---|" + "---|" * (len(languages) + 1))
    for layer in options.layers.split(","):
        since = time.perf_counter()
        cells = []
        for language in languages:
            runs = [run(language, layer, rate, seed, options.steps) for rate in rates for seed in range(options.seeds)]
            seen, beyond, rate = max(runs)
            cells.append(f"{100 * beyond:.1f} ({100 * seen:.1f})")
            print(f"{layer} {language}: {runs}", file=sys.stderr, flush=True)
        seconds = (time.perf_counter() - since) / (len(languages) * len(rates) * options.seeds)
        print(f"| `{layer}` | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


def run(language: str, layer: str, rate: float, seed: int, steps: int) -> tuple[float, float, float]:
    """(accuracy at the lengths of training, accuracy beyond them, learning rate) of one run."""
    layer, dot, option = layer.partition(".")
    overrides = [f"seed={seed}", f"optim.learning_rate={rate}", f"train.steps={steps}"]
    overrides += [f"mixers.{layer}.{option}"] if dot else []
    config = apply_overrides(load_config(f"{EXPERIMENT}:{layer}@{language}"), overrides)
    experiment = make_experiment(config)
    model, task, spec = experiment.model, experiment.task, experiment.spec
    step = _compiled(make_train_step(model, task, spec, None))
    key_params, key_steps = jax.random.split(jax.random.key(seed))
    state = init_train_state(_init(model)(key_params), experiment.hparams, spec, key_steps)
    for index in range(steps):
        state, _, _ = step(state, (), experiment.batches.batch(index))
    accuracies = []
    for split in ("valid", "test"):
        batches = experiment.source.splits[split].batches(config.eval.batch_size, 0, False)
        accuracies.append(evaluate(model, task, state.params, batches, experiment.parallel)["accuracy"])
    return *accuracies, rate


@functools.cache
def _compiled(step):
    return jax.jit(step, donate_argnums=(0,))


@functools.cache
def _init(model):
    return jax.jit(functools.partial(init_params, model))


if __name__ == "__main__":
    main()

"""One part of every kind that is not of the package, each registered as the package registers its own.

    python launch.py --config=experiments/own_parts.py
    python launch.py plan --config=experiments/own_parts.py --config.optimizers.signum.beta=0.5
    python launch.py sweep --config=experiments/own_parts.py --sweep=momenta
    python launch.py compare --config=experiments/own_parts.py

Rows of ballots such as "a b b a b" are told by what has the majority; 60 steps take seconds, and the accuracy on the
validation split is above 90 %. The data are written to runs/own_parts.ballots where they are not there.
"""

import dataclasses
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import hybrid_flax as hf
from hybrid_flax.cells.inputs import linear
from hybrid_flax.compare.definition import ComparedTask, Definition
from hybrid_flax.config import base_config
from hybrid_flax.data.text_files import read_lines
from hybrid_flax.files import write_whole
from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.ranges import Positive, Share
from hybrid_flax.sweep.space import axis


def leaky(width: int, *, rate: Share = 0.5) -> hf.Cell:
    """A cell: h_t = (1 - rate) h_tm1 + rate tanh(W x_t + b)."""

    def step(params, state, u_t):
        h = (1 - rate) * state["h"] + rate * jnp.tanh(u_t)
        return {"h": h}, h

    def init_state(batch_size):
        return {"h": jnp.zeros((batch_size, width))}

    return hf.Cell(linear(width, (width,)), lambda key: {}, init_state, step, width)


def signum(hparams, *, beta: Share = 0.9) -> optax.GradientTransformation:
    """An optimizer: the sign of a momentum (Bernstein et al. 2018). beta may be traced."""
    del hparams
    return optax.chain(optax.trace(decay=beta), optax.scale_by_sign())


def triangle(course, *, floor: Share = 0.1):
    """A schedule: straight down to `floor` at the last step."""
    return lambda count: 1.0 - (1.0 - floor) * count / course.rest


def majority(labels: tuple[str, ...], unseen: tuple[str, ...]) -> hf.Task:
    """A task: which of the labels has the majority; accuracy alone is measured."""

    def loss(logits, batch):
        losses = cross_entropy(logits, batch.targets)
        return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}

    def evaluate(logits, batch):
        right = predict(logits) == batch.targets
        return loss(logits, batch) | {"right": jnp.sum(jnp.where(right, batch.weights, 0.0))}

    def measure(sums):
        return {"loss": sums["loss"] / sums["count"], "accuracy": sums["right"] / sums["count"]}

    def predict(logits, live=None):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return hf.Task(loss, evaluate, measure, METRICS, predict)


METRICS = (
    hf.Metric("loss", "nats", lower_is_better=True, text="loss {:.4f} nats"),
    hf.Metric("accuracy", share=True, text="  accuracy {:.2f} %"),
)


def focal(*, gamma: Positive = 2.0):
    """A loss: what is right already counts less (Lin et al. 2017)."""

    def losses(logits, targets):
        nats = cross_entropy(logits, targets)
        return (1.0 - jnp.exp(-nats)) ** gamma * nats

    return losses


def sure_sums(logits, batch):
    """A metric: the mean probability of what is predicted."""
    sure = jax.nn.softmax(logits, axis=-1).max(axis=-1)
    return {"sure": jnp.sum(sure * batch.weights), "count": jnp.sum(batch.weights)}


def read_ballots(file: Path, text: str, label: str | None, encoding: str) -> Iterator[hf.Record]:
    """A reader: lines "a b b a b > b"."""
    for number, line in enumerate(read_lines(file, encoding), start=1):
        ballots, mark, winner = line.partition(" > ")
        if not mark:
            raise ValueError(f"{file}:{number}: no ' > ' in {line!r}")
        yield hf.Record(ballots, winner, f"{file}:{number}")


Alphabet = Annotated[int, hf.Range(at_least=1, at_most=26)]


@dataclasses.dataclass(frozen=True)
class Letters(hf.Tokenizer):
    """A tokenizer: at most 26 letters in lower case; 0 is every other sign."""

    letters: str
    name, unknown_id, vocab_size = "letters", 0, 27

    def encode(self, text: str) -> np.ndarray:
        return np.array([1 + self.letters.find(sign.lower()) for sign in text], np.int32)

    def decode(self, ids: Iterable) -> str:
        return "".join(f"?{self.letters:26}"[i] for i in ids)

    def widths(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(text), np.int32), np.array([len(sign.encode()) for sign in text], np.int32)

    def to_dict(self) -> dict:
        return {"name": self.name, "letters": self.letters}


def make_letters(texts: Iterable[str], vocabulary, *, most: Alphabet = 26) -> Letters:
    """The letters of the training texts, at most so many."""
    return Letters("".join(sorted({sign for text in texts for sign in text.lower()})[:most]))


class Lines:
    """A logger: the rows as lines of rows.txt."""

    def __init__(self, folder: Path, config: ConfigDict, start: int, *, digits: int = 4):
        self._file, self._digits = (folder / "rows.txt").open("a"), digits

    def write(self, row):
        self._file.write("  ".join(f"{name} {value:.{self._digits}g}" for name, value in row.items()) + "\n")

    def close(self):
        self._file.close()


def note_norm(step: int, values, run):
    """A hook: the norm of all parameters at every evaluation."""
    with (run.folder / "norms.txt").open("a") as file:
        file.write(f"{step} {optax.tree.norm(run.params):.6f}\n")


hf.register_cell("leaky", leaky)
hf.register_optimizer("signum", signum)
hf.register_schedule("triangle", triangle)
hf.register_task("majority", majority, "class")
hf.register_loss("focal", focal, tasks=("majority",))
hf.register_metric("sure", ("majority",), sure_sums, lambda sums: sums["sure"] / sums["count"], share=True)
hf.register_reader(".ballots", read_ballots)
hf.register_tokenizer("letters", make_letters, lambda saved: Letters(saved["letters"]))
hf.register_logger("lines", Lines)
hf.register_hook("evaluation", note_norm)


def get_config(arg: str = "") -> ConfigDict:
    """arg: a file of ballots, runs/own_parts.ballots by default."""
    config = base_config()
    config.task.name, config.loss.name = "majority", "focal"
    config.data.path = arg or _written("runs/own_parts.ballots")
    config.data.mode, config.data.tokenizer, config.data.length = "padded", "letters", 24
    config.data.test_fraction = 0.1
    config.model.pattern, config.model.depth, config.model.width = "leaky,attn", 2, 16
    config.mixers.attn.num_heads = 1
    config.optim.name, config.optim.learning_rate, config.optimizers.signum.beta = "signum", 3e-3, 0.8
    config.schedule.name = "triangle"
    config.train.steps, config.train.log_every, config.train.checkpoint_every = 60, 10, 20
    config.eval.every, config.eval.metric = 20, "sure"
    config.log.lines = True
    return config


def sweep_momenta() -> list[dict]:
    """Two momenta."""
    return axis("optimizers.signum.beta", [0.5, 0.9])


def get_compare(arg: str = "") -> Definition:
    """The cell, attention, and both; arg: as for get_config."""
    return Definition(
        title="Which side has the majority?",
        rows={name: {"model.pattern": name} for name in ("leaky,leaky", "attn,attn", "leaky,attn")},
        tasks={"majority": ComparedTask(get_config(arg))},
        budget={"parameters": 6250},
        learning_rates=(3e-3,),
        seeds=2,
    )


def _written(name: str) -> str:
    """A file of 400 rows, written where there is none."""
    rng = random.Random(0)
    rows = [[rng.choice("ab") for _ in range(rng.choice((5, 7, 9, 11)))] for _ in range(400)]
    if not Path(name).exists():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(name, "".join(f"{' '.join(row)} > {max('ab', key=row.count)}\n" for row in rows))
    return name

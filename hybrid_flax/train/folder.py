"""The folder of a run: what lies where, and whether it is the same run."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hybrid_flax.config import config_diff, config_hash, few_of, merge_saved
from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import read_json, write_json
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.typing import Params

__all__ = ["FORMAT", "Run", "RunFolder", "default_folder"]

FORMAT = 1  # of a run folder, in its run.json; that of version 0.1 has none and is read as it is


class Run(NamedTuple):
    """A run as it can be used: model.apply({"params": params}, tokens, segments, state).

    step: updates done. labels: the names of what is predicted, () where it is numbers or symbols.
    """

    model: SequenceModel
    params: Params
    tokenizer: Tokenizer
    config: ConfigDict
    step: int
    labels: tuple[str, ...] = ()


class RunFolder:
    """Paths of a run folder.

    config.json, run.json (versions, git revision), tokenizer.json, labels.json, metrics.jsonl (every figure that does
    not depend on the machine), perf.jsonl (wall-clock figures), checkpoints/, tensorboard/, results.json, loss.png,
    sample.txt, diagnosis.json.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.about = self.path / "run.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.labels = self.path / "labels.json"
        self.metrics = self.path / "metrics.jsonl"
        self.perf = self.path / "perf.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.results = self.path / "results.json"
        self.plot = self.path / "loss.png"
        self.sample = self.path / "sample.txt"
        self.diagnosis = self.path / "diagnosis.json"

    def open(self, config: ConfigDict, tokenizer: Tokenizer, labels: tuple[str, ...], experiment_name: str) -> None:
        """Make the folder, or check that it holds a run of the same config (ConfigError says what differs)."""
        new = config.to_dict()
        if self.config.exists():
            self.check_format()
            changes = config_diff(merge_saved(read_json(self.config)), new)
            if changes:
                raise ConfigError(
                    f"{self.path} holds a run of another config: {few_of(changes)}; use another --workdir"
                )
            return
        if jax.process_index() != 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a run folder: {error.strerror}") from error
        write_json(self.tokenizer, tokenizer.to_dict())
        write_json(self.labels, labels)
        write_json(self.about, _about(experiment_name))
        write_json(self.config, new)

    def check_format(self) -> None:
        """Raises ConfigError where a later version wrote the folder in a way that this one does not know."""
        made = read_json(self.about).get("format", 0) if self.about.exists() else 0
        if made > FORMAT:
            raise ConfigError(
                f"{self.path} was written by a later version of hybrid_flax (format {made}, this one knows {FORMAT}): "
                "install that, or use another --workdir"
            )

    def write_results(
        self, results: dict[str, dict[str, float]], step: int, *, last_step: int, stopped_early: bool
    ) -> None:
        """Final metrics by split, those of the parameters after `step` updates; training went on to `last_step`."""
        write_json(self.results, {"step": step, "last_step": last_step, "stopped_early": stopped_early, **results})

    def read_results(self) -> dict[str, dict[str, float]]:
        """The metrics that `write_results` wrote."""
        return {name: value for name, value in read_json(self.results).items() if isinstance(value, dict)}


def default_folder(experiment: str, config: ConfigDict | None = None, prefix: str = "") -> str:
    """Where a run of the experiment `path.py[:arg]` goes unless it is said: runs/NAME-ARG, and a hash of the config."""
    name, _, arg = experiment.partition(":")
    parts = (prefix + Path(name).stem, arg.replace("/", "_"), "" if config is None else config_hash(config))
    return str(Path("runs") / "-".join(filter(None, parts)))


def _about(experiment_name):
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy")
    device = jax.devices()[0]
    return {
        "format": FORMAT,
        "experiment": experiment_name,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
    }


def _git_revision():
    """The commit that the package runs from, with "+changes" where its files differ; None outside a checkout."""
    root = Path(__file__).parent
    try:
        show: dict[str, Any] = {"cwd": root, "capture_output": True, "text": True, "timeout": 5}
        head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, **show).stdout.strip()
        # A status that is cut off by the timeout would leave its lock on the index, and no one could commit any more.
        status = ["git", "--no-optional-locks", "status", "--porcelain", "-uno"]
        changed = subprocess.run(status, check=True, **show).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")

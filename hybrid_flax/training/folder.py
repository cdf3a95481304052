"""The folder of a run: what lies where, and whether it is the same run."""

import errno
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hybrid_flax import __version__
from hybrid_flax.config import config_diff, config_hash, few_of, read_config, value_at
from hybrid_flax.data.sources import Source
from hybrid_flax.data.tokenizers import Tokenizer, tokenizer_from_dict
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import read_json, reading, write_json
from hybrid_flax.locks import FileLock
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.training.course import ENDS
from hybrid_flax.training.writers import read_jsonl
from hybrid_flax.typing import Params

__all__ = ["FORMAT", "News", "Run", "RunFolder", "default_folder"]

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems without them
_LOGS = ("log.", "loggers.")  # sections that change nothing of a run
_PATIENCE = 5.0  # seconds that a killed process may take to end
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


class News(NamedTuple):
    """What has changed since a run was last trained, in words: its data, its end; "" where they have not."""

    data: str = ""
    end: str = ""


class RunFolder:
    """Paths of a run folder.

    config.json, run.json (versions, driver, git revision, what the data held), tokenizer.json, labels.json,
    metrics.jsonl (every figure that does not depend on the machine), perf.jsonl (wall-clock figures), checkpoints/,
    damaged/ (those that were found damaged), tensorboard/, results.json, loss.png, sample.txt, diagnosis.json,
    init_from.json (what it took from another run), experiment.py and modules/ (the source of the experiment, and of the
    modules that it imports), writer.lock (held by the process that trains). An exported folder has model.safetensors in
    place of checkpoints/, and README.md.
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
        self.damaged = self.path / "damaged"
        self.tensorboard = self.path / "tensorboard"
        self.results = self.path / "results.json"
        self.plot = self.path / "loss.png"
        self.sample = self.path / "sample.txt"
        self.diagnosis = self.path / "diagnosis.json"
        self.start = self.path / "init_from.json"
        self.weights = self.path / "model.safetensors"
        self.card = self.path / "README.md"
        self.experiment = self.path / "experiment.py"
        self.modules = self.path / "modules"
        self.lock = self.path / "writer.lock"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Make the folder, and be the only one that trains in it.

        Raises ConfigError in one line where another process does. A finished run that cannot be written is left as is.
        """
        if jax.process_index() != 0 or (self.results.exists() and not os.access(self.path, os.W_OK)):
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a run folder: {error.strerror}") from error
        lock = FileLock(self.lock)
        try:
            held = lock.acquire(wait=_PATIENCE)
        except ConfigError as error:
            if getattr(error.__cause__, "errno", None) not in _NO_LOCKS:
                raise
            print(f"{error}: nothing keeps another process from training in this folder")
            held = True
        if not held:
            raise ConfigError(f"{lock.holder()} trains in {self.path}: wait for it to end, or use another --workdir")
        try:
            yield
        finally:
            lock.release()

    def open(self, config: ConfigDict, source: Source, experiment_name: str, *, changed_data: bool = False) -> News:
        """Write what the run is, or check that the folder holds the same config and data; what has changed since.

        The knobs of `course.ENDS` and what loggers are told may differ. changed_data: whether other data than the run
        began with are let pass.
        Raises ConfigError in one line that says what differs, and where the checkpoints or the config are gone.
        """
        if self.is_exported() or (self.about.exists() and "imported" in self.read_about()):
            raise ConfigError(
                f"{self.path} holds weights alone, which cannot be gone on with: start from them with "
                f"--config.train.init_from={self.path} and another --workdir"
            )
        self._check_whole()
        new = config.to_dict()
        if not self.config.exists():
            if jax.process_index() == 0:
                write_json(self.tokenizer, source.tokenizer.to_dict())
                write_json(self.labels, source.labels)
                write_json(self.about, _about(experiment_name) | {"data": source.contents()})
                write_json(self.config, new)
            return News()
        changes = [change for change in config_diff(self.read_config(), new) if not change.startswith(_LOGS)]
        ends = "; ".join(changes)
        if not all(change.startswith(tuple(f"{key}: " for key in ENDS)) for change in changes):
            raise ConfigError(f"{self.path} holds a run of another config: {few_of(changes)}; use another --workdir")
        changes = self.data_changes(source)
        if changes and not changed_data:
            raise ConfigError(
                f"{self.path} was trained on other data: {few_of(changes)}; restore them, use another --workdir, or go "
                "on all the same with --changed_data, which keeps the tokenizer and the labels of the run"
            )
        return News(few_of(changes), ends)

    def note_data(self, source: Source) -> None:
        """Note that the run goes on with `source`, and what it was trained on before."""
        about = self.read_about()
        earlier = [*about.get("earlier_data", []), about.get("data", "unknown")]
        write_json(self.about, about | {"data": source.contents(), "earlier_data": earlier})

    def note_end(self, config: ConfigDict, step: int) -> None:
        """Note that the run goes on from `step` to the end that `config` says, and what its end was before."""
        about, old = self.read_about() if self.about.exists() else {}, self.read_config()
        end = {"step": step, **{key: value_at(old, key) for key in ENDS}}
        if about:
            write_json(self.about, about | {"earlier_ends": [*about.get("earlier_ends", []), end]})
        write_json(self.config, config.to_dict())

    def _check_whole(self):
        rows = read_jsonl(self.metrics)
        saved = any(path.name.isdecimal() for path in self.checkpoints.glob("*"))
        if saved and not self.config.exists():
            raise ConfigError(f"{self.path} has checkpoints and no config.json: put it back, or use another --workdir")
        if not saved and (self.results.exists() or (rows and not self.checkpoints.is_dir())):
            step = rows[-1].get("step", 0) if rows else 0
            raise ConfigError(
                f"{self.path} has metrics up to step {step} and no checkpoint in {self.checkpoints.name}/: put that "
                "back, or use another --workdir"
            )

    def is_exported(self) -> bool:
        """Whether the folder is an exported one."""
        return self.weights.exists() and not self.checkpoints.is_dir()

    def read_config(self) -> ConfigDict:
        """The config of the run. Raises ConfigError in one line where there is none that this version can read."""
        self.check_format()
        return read_config(self.config)

    def read_about(self) -> dict[str, Any]:
        """What run.json says. Raises ConfigError in one line where it cannot be read."""
        about = read_json(self.about, dict)
        if not isinstance(about.get("versions"), dict):
            raise ConfigError(f"{self.about} is damaged: it has no versions")
        return about

    def read_vocabulary(self) -> tuple[Tokenizer, tuple[str, ...]]:
        """The tokenizer and the labels of the run. Raises ConfigError in one line where they cannot be read."""
        with reading(self.tokenizer):
            tokenizer = tokenizer_from_dict(read_json(self.tokenizer, dict))
        labels = read_json(self.labels, list)
        if not all(isinstance(label, str) for label in labels):
            raise ConfigError(f"{self.labels} is damaged: labels are texts")
        return tokenizer, tuple(labels)

    def data_changes(self, source: Source) -> list[str]:
        """What differs between `source` and the data that the run was last trained on, a line each.

        Tokenizer and labels alone where run.json does not say what those were, as that of version 0.1.
        """
        saved = self.read_about().get("data") if self.about.exists() else None
        tokenizer, labels = self.read_vocabulary()
        changes = config_diff(saved, source.contents()) if isinstance(saved, dict) else []
        if tokenizer != source.tokenizer:
            changes.insert(0, "another tokenizer comes of them")
        if labels != source.labels:
            changes.insert(0, f"labels: {', '.join(labels)} -> {', '.join(source.labels)}")
        return changes

    def check_format(self) -> None:
        """Raises ConfigError where a later version wrote the folder in a way that this one does not know."""
        made = self.read_about().get("format", 0) if self.about.exists() else 0
        if not isinstance(made, int) or made > FORMAT:
            raise ConfigError(
                f"{self.path} was written by a later version of hybrid_flax (format {made}, this one knows {FORMAT}): "
                "install that, or use another --workdir"
            )

    def write_results(
        self, results: dict[str, dict[str, float]], step: int, *, last_step: int, stopped_early: bool
    ) -> None:
        """Final metrics by split, those of the parameters after `step` updates; training went on to `last_step`."""
        write_json(self.results, {"step": step, "last_step": last_step, "stopped_early": stopped_early, **results})

    def has_results(self, last_step: int) -> bool:
        """Whether there are final metrics of a training that went on to `last_step`."""
        return self.results.exists() and read_json(self.results, dict).get("last_step", last_step) == last_step

    def read_results(self) -> dict[str, dict[str, float]]:
        """The metrics that `write_results` wrote."""
        return {name: value for name, value in read_json(self.results, dict).items() if isinstance(value, dict)}


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
        "versions": {"hybrid_flax": __version__, **{name: metadata.version(name) for name in packages}},
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "driver": " ".join(device.client.platform_version.split()),
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

"""Where trials are kept: Optuna studies in a journal file of the folder, or on a PostgreSQL server."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages.journal import JournalFileBackend

from hybrid_flax.config import config_diff, few_of, with_new_knobs
from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.jobs.claims import Claims, FileClaims, PostgresClaims
from hybrid_flax.locks import FileLock

__all__ = ["PRUNERS", "Store", "Study", "make_pruner", "open_store", "open_study"]

_IDENTITY = "sweep"  # as version 0.1 called it, which knew studies of sweeps alone
PRUNERS = ("none", "median", "halving", "hyperband")


class Store(NamedTuple):
    """What the workers of one folder share. name: of the folder. claims: of its trials."""

    name: str
    storage: optuna.storages.BaseStorage
    claims: Claims


class Study(NamedTuple):
    """A study, where it is stored, and the claims of its workers."""

    optuna: optuna.Study
    storage: optuna.storages.BaseStorage
    claims: Claims


def open_store(workdir: Path, url: str | None = None) -> Store:
    """The store of a folder: a journal file in it, or (url) a PostgreSQL server, under the folder's name.

    Raises ConfigError in one line.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = workdir.absolute().name
    if url is None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{workdir} cannot be a folder of runs: {error.strerror}") from error
        files = FileClaims(workdir / "claims")
        with files.exclusive():
            return Store(name, _open_journal(workdir / "study.journal"), files)
    claims = PostgresClaims(_postgres_url(url, "postgresql"), name)
    with claims.exclusive():
        try:
            return Store(name, optuna.storages.RDBStorage(_postgres_url(url, "postgresql+psycopg")), claims)
        except Exception as error:
            raise ConfigError(f"--storage cannot be used: {one_line(error)[:300]}") from error


def open_study(store: Store, identity: Mapping[str, Any], *, lower_is_better: bool, part: str = "") -> Study:
    """The study of a store's folder, or of one part of it.

    identity: what makes it this one; a study of another is refused. Raises ConfigError in one line.
    """
    with store.claims.exclusive():
        study = optuna.create_study(
            study_name=f"{store.name}/{part}" if part else store.name,
            storage=store.storage,
            load_if_exists=True,
            direction="minimize" if lower_is_better else "maximize",
        )
        saved = study.user_attrs.get(_IDENTITY)
        if saved is None:
            study.set_user_attr(_IDENTITY, json.dumps(dict(identity)))
        else:
            _check_identity(store.name, json.loads(saved), json.loads(json.dumps(dict(identity))))
    return Study(study, store.storage, store.claims)


def make_pruner(name: str, eval_every: int, num_steps: int) -> optuna.pruners.BasePruner:
    """The pruner of a name; its resource is training steps, looked at every `eval_every` of `num_steps`."""
    if name == "none":
        return optuna.pruners.NopPruner()
    if not eval_every:
        raise ConfigError(f"--pruner={name} needs evaluations on the way: set eval.every, of {num_steps} steps")
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=eval_every)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=eval_every, reduction_factor=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=eval_every, max_resource=max(num_steps, eval_every), reduction_factor=3
        )
    raise ConfigError(f"--pruner={name!r} is none of {', '.join(PRUNERS)}")


def _check_identity(name, saved, given):
    changes = config_diff(with_new_knobs(saved, given), given)
    if changes:
        raise ConfigError(
            f"{name} holds another sweep or comparison, the config file or the command has changed: "
            f"{few_of(changes)}; use another --workdir"
        )


def _open_journal(path):
    lock = FileLock(f"{path}.lock")  # Optuna's own outlive a killed process by half a minute
    if path.exists():
        lock.acquire()
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # a line cut off by the end of the machine
            os.truncate(path, whole)
        lock.release()
    # The class that optuna wants of a lock has no public name.
    backend = JournalFileBackend(str(path), lock)  # type: ignore[arg-type]
    return optuna.storages.JournalStorage(backend)


def _postgres_url(url, scheme):
    if url.partition("://")[0] not in ("postgresql", "postgres", "postgresql+psycopg") or "://" not in url:
        raise ConfigError(f"--storage={url}: give postgresql://USER@HOST/DATABASE, or leave it out for a journal file")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError("--storage needs psycopg: pip install 'hybrid_flax[postgresql]'") from None
    return f"{scheme}://{url.partition('://')[2]}"

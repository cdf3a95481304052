"""hybrid_flax: sequence models that fuse self-attention with recurrence, as an algebra of mixers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_flax.config import base_config, load_config
    from hybrid_flax.data.readers import Record, register_reader
    from hybrid_flax.data.tokenizers import Tokenizer, register_tokenizer
    from hybrid_flax.mixers.fusion import fuse
    from hybrid_flax.mixers.registry import (
        make_mixer,
        parse_pattern,
        register_cell,
        register_fusion,
        register_mixer,
        registered_mixers,
    )
    from hybrid_flax.models.build import init_params, make_model
    from hybrid_flax.ranges import Range
    from hybrid_flax.runs import OpenRun, load_run, train
    from hybrid_flax.tasks.base import Metric, Task
    from hybrid_flax.tasks.objective import register_loss
    from hybrid_flax.tasks.registry import register_metric, register_task
    from hybrid_flax.training.hooks import register_hook
    from hybrid_flax.training.loggers import register_logger
    from hybrid_flax.training.optimizer import register_optimizer, register_schedule
    from hybrid_flax.typing import Cell, Mixer, Segments, Traits

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Metric",
    "Mixer",
    "OpenRun",
    "Range",
    "Record",
    "Segments",
    "Task",
    "Tokenizer",
    "Traits",
    "base_config",
    "fuse",
    "init_params",
    "load_config",
    "load_run",
    "make_mixer",
    "make_model",
    "parse_pattern",
    "register_cell",
    "register_fusion",
    "register_hook",
    "register_logger",
    "register_loss",
    "register_metric",
    "register_mixer",
    "register_optimizer",
    "register_reader",
    "register_schedule",
    "register_task",
    "register_tokenizer",
    "registered_mixers",
    "train",
]


_HOME = {
    **dict.fromkeys(("Cell", "Mixer", "Segments", "Traits"), "typing"),
    **dict.fromkeys(("OpenRun", "load_run", "train"), "runs"),
    **dict.fromkeys(("base_config", "load_config"), "config"),
    **dict.fromkeys(("init_params", "make_model"), "models.build"),
    **dict.fromkeys(("Metric", "Task"), "tasks.base"),
    **dict.fromkeys(("register_metric", "register_task"), "tasks.registry"),
    **dict.fromkeys(("register_optimizer", "register_schedule"), "training.optimizer"),
    **dict.fromkeys(("Record", "register_reader"), "data.readers"),
    **dict.fromkeys(("Tokenizer", "register_tokenizer"), "data.tokenizers"),
    "Range": "ranges",
    "fuse": "mixers.fusion",
    "register_hook": "training.hooks",
    "register_logger": "training.loggers",
    "register_loss": "tasks.objective",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that neither `import hybrid_flax` nor a command that is wrong waits for JAX."""
    if name not in __all__:
        raise AttributeError(f"module 'hybrid_flax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hybrid_flax.{_HOME.get(name, 'mixers.registry')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

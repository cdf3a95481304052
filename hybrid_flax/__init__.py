"""hybrid_flax: sequence models that fuse self-attention with recurrence, as an algebra of mixers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_flax.mixers.fusion import fuse
    from hybrid_flax.mixers.registry import (
        make_mixer,
        parse_pattern,
        register_cell,
        register_fusion,
        register_mixer,
        registered_mixers,
    )
    from hybrid_flax.runs import Run, load_run
    from hybrid_flax.typing import Cell, Mixer, Segments, Traits

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Mixer",
    "Run",
    "Segments",
    "Traits",
    "fuse",
    "load_run",
    "make_mixer",
    "parse_pattern",
    "register_cell",
    "register_fusion",
    "register_mixer",
    "registered_mixers",
]


_HOME = {
    **dict.fromkeys(("Cell", "Mixer", "Segments", "Traits"), "hybrid_flax.typing"),
    **dict.fromkeys(("Run", "load_run"), "hybrid_flax.runs"),
    "fuse": "hybrid_flax.mixers.fusion",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that neither `import hybrid_flax` nor a command that is wrong waits for JAX."""
    if name not in __all__:
        raise AttributeError(f"module 'hybrid_flax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "hybrid_flax.mixers.registry")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

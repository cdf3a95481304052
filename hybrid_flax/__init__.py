"""hybrid_flax: sequence models that fuse self-attention with recurrence, as an algebra of mixers."""

from typing import TYPE_CHECKING, Any

from hybrid_flax.mixers.registry import (
    make_mixer,
    parse_pattern,
    register_cell,
    register_fusion,
    register_mixer,
    registered_mixers,
)
from hybrid_flax.typing import Cell, Mixer, Segments, Traits

if TYPE_CHECKING:
    from hybrid_flax.runs import Run, load_run

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Mixer",
    "Run",
    "Segments",
    "Traits",
    "load_run",
    "make_mixer",
    "parse_pattern",
    "register_cell",
    "register_fusion",
    "register_mixer",
    "registered_mixers",
]


def __getattr__(name: str) -> Any:
    """Import on first use what needs flax and orbax, so that `import hybrid_flax` stays quick."""
    if name in ("Run", "load_run"):
        from hybrid_flax import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'hybrid_flax' has no attribute {name!r}")

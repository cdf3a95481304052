"""Ranges of numbers, which stand beside what they bound: a knob, or an option of a mixer.

    def leaky(width: int, *, start: Annotated[float, Range(above=0.0, below=1.0)] = 0.9) -> Cell: ...

An option without one is bounded as `check_number` says.
"""

import math
from operator import ge, gt, le, lt
from typing import Annotated, Any, NamedTuple, TypeAlias

from hybrid_flax.errors import ConfigError

__all__ = ["LARGEST", "WIDEST", "Bias", "Count", "Positive", "Range", "Share", "Width", "check_number", "fits"]

LARGEST = 2**31 - 1  # of whole numbers: sizes and counts are int32 on a device
WIDEST = 2**20  # features; a matrix of as many by as many is 4 TiB
_FLOAT32 = 3.4028234e38  # the largest number that is finite on a device


class Range(NamedTuple):
    """Bounds of a number, closed and open; None where there is none. Not-a-number is out of every range."""

    at_least: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None
    at_most: int | float | None = None

    def holds(self, value: int | float) -> bool:
        """Whether `value` is within."""
        bounds = zip((ge, gt, lt, le), self, strict=True)
        return all(bound is None or within(value, bound) for within, bound in bounds)

    def __str__(self) -> str:
        low = f"[{self.at_least}" if self.above is None else f"({self.above}"
        if self.below is None and self.at_most in (None, math.inf):
            return f"at least {self.at_least}" if self.above is None else f"above {self.above}"
        return f"in {low}, {self.at_most}]" if self.below is None else f"in {low}, {self.below})"


Count: TypeAlias = Annotated[int, Range(at_least=1)]
Width: TypeAlias = Annotated[int, Range(at_least=1, at_most=WIDEST)]
Positive: TypeAlias = Annotated[float, Range(above=0.0)]
Share: TypeAlias = Annotated[float, Range(at_least=0.0, below=1.0)]
Bias: TypeAlias = Annotated[float, Range(at_least=-80.0, at_most=80.0)]  # of a gate; exp of it is finite


def check_number(name: str, value: Any, bounds: Range, unit: str = "") -> None:
    """Raise ConfigError where a number is out of its bounds.

    Where they have no upper end, a whole number goes up to LARGEST, and another one must be finite in float32.
    """
    rule = "" if bounds.holds(value) else str(bounds)
    if not rule and isinstance(value, float) and math.isfinite(value) and abs(value) > _FLOAT32:
        rule = "finite in float32"
    if not rule and bounds.below is None and bounds.at_most is None:
        if isinstance(value, float):
            rule = "" if math.isfinite(value) else "finite in float32"
        elif abs(value) > LARGEST:
            rule = f"at most {LARGEST}" if value > 0 else f"at least {-LARGEST}"
    if rule:
        raise ConfigError(f"{name}={value} must be {rule}{f' ({unit})' if unit else ''}")


def fits(value: Any, kind: type) -> bool:
    """Whether `value` has a type, as a config or JSON writes it: 1 is a float too, a list a tuple, True no number."""
    kinds = {float: (float, int), tuple: (list, tuple)}.get(kind, (kind,))
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)

"""Options of what is registered: the keyword-only arguments of its builder, with their types and ranges."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.ranges import Range, check_number, fits
from hybrid_flax.spelling import read_value

__all__ = ["Option", "check_defaults", "options_of", "source_of"]


class Option(NamedTuple):
    """One keyword of a builder: its default, its type, and where it may stand as `Annotated` says beside it.

    bounds: of a number. choices: of a text, () where any will do.
    """

    default: Any
    type: type
    bounds: Range = Range()
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError where `value` is no value of the option, which an error calls `name`."""
        if self.type not in (int, float, str, bool) or (value is None and self.default is None):
            return
        if not fits(value, self.type):
            raise ConfigError(f"{name}={value!r} is no {self.type.__name__}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name}={value!r} is none of {', '.join(self.choices)}")
        if self.type in (int, float):
            check_number(name, value, self.bounds)

    def read(self, name: str, text: str) -> Any:
        """The value in `text`, "none" being None where that is the default. Raises ConfigError as `check`."""
        if text == "none" and self.default is None:
            return None
        if self.type not in (int, float, str, bool):
            raise ConfigError(f"{name}: a {self.type.__name__} cannot stand in a layer")
        try:
            value = read_value(text, self.type)
        except ValueError:
            raise ConfigError(f"{name}={text!r} is no {self.type.__name__}") from None
        self.check(name, value)
        return value

    @staticmethod
    def write(value: Any) -> str:
        """The text that `read` reads as `value`; it is free of "+", which stands between layers."""
        if value is None or isinstance(value, bool):
            return str(value).lower()
        return repr(value).replace("e+", "e") if isinstance(value, float) else str(value)


def options_of(build: Callable[..., Any], defaults: Mapping[str, Any] = {}) -> dict[str, Option]:
    """The options of a builder, with `defaults` in place of its own. Raises ValueError for one without a default."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(_annotated(build)), include_extras=True)
    except NameError as error:
        raise ValueError(f"{source_of(build)}: an annotation cannot be read: {error}") from error
    parameters = inspect.signature(build).parameters.values()
    options = {}
    for parameter in parameters:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        default = defaults.get(parameter.name, parameter.default)
        if default is inspect.Parameter.empty:
            raise ValueError(f"{build.__qualname__}: option {parameter.name!r} needs a default")
        option = options[parameter.name] = _option(default, hints.get(parameter.name, type(default)))
        option.check(f"{source_of(build)}: default {parameter.name}", default)
    check_defaults(build, defaults, options)
    return options


def check_defaults(build: Callable[..., Any], defaults: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Raise ValueError for defaults of what is none of the builder's options."""
    for key in defaults:
        if key not in options:
            raise ValueError(f"unknown option {key!r} of {build.__qualname__}; {nearest(key, options)}")


def source_of(build: Callable[..., Any]) -> str:
    """Where a function was written: its module and its name there."""
    function = _function(build)
    return f"{function.__module__}.{function.__qualname__}"


def _function(build):
    """The function of a partial one; the class of an object that can be called."""
    while hasattr(build, "func"):
        build = build.func
    return build if hasattr(build, "__qualname__") else type(build)


def _annotated(build):
    """What holds the annotations of the arguments of `build`."""
    function = _function(build)
    if inspect.isclass(function):
        return function.__init__ if inspect.isclass(build) else function.__call__
    return function


def _option(default: Any, hint: Any) -> Option:
    """From a hint such as int, Annotated[int, Range(at_least=1)] | None, or Annotated[str, ("rms", "layer")]."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint, *others = (kind for kind in typing.get_args(hint) if kind is not type(None))
        if others:
            raise ValueError(f"an option has one type, not {hint} or {others[0]}")
    if typing.get_origin(hint) is not typing.Annotated:
        return Option(default, hint)
    kind, *notes = typing.get_args(hint)
    bounds = next((note for note in notes if isinstance(note, Range)), Range())
    choices = next((note for note in notes if isinstance(note, tuple) and not isinstance(note, Range)), ())
    return Option(default, kind, bounds, choices)

"""The screen: where what a command says is written, letter by letter."""

from typing import Any

from rich.console import Console

__all__ = ["make_console"]


def make_console(**options: Any) -> Console:
    """A console that takes no text for markup or emoji: `[/x]` and `:x:` may be names of a user's. options: rich's."""
    return Console(markup=False, emoji=False, **options)

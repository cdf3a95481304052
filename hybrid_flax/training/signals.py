"""Stopping on SIGTERM and Ctrl-C: where the work can be saved, or at once where there is none."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupt", "Interrupted", "Terminated", "end_on_signals", "stop_on_signals", "stopped_by"]


class Interrupt:
    """A wish to stop. number: the first signal that asked for it, None before."""

    number: int | None = None

    def at(self, step: int) -> int | None:
        """The signal to stop with after `step`, None to go on."""
        return self.number

    def now(self) -> int | None:
        """The signal to stop with in the middle of an evaluation, None to go on."""
        return self.number


class Interrupted(Exception):
    """A signal asked to stop; the checkpoint of `step` is on disk."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"{stopped_by(signal_number)} after step {step}, which is saved")
        self.step = step
        self.signal_number = signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM or Ctrl-C where there is nothing to save. No Exception, so that nobody takes it for a fault."""

    def __init__(self, signal_number: int):
        super().__init__(stopped_by(signal_number))
        self.signal_number = signal_number


def stopped_by(signal_number: int) -> str:
    """ "stopped by SIGTERM"."""
    return f"stopped by {signal.Signals(signal_number).name}"


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise Terminated where they come.

    Whatever is raised after that is taken for it: a library whose import is cut short says that it is broken.
    """
    came: list[int] = []

    def end(number, frame):
        came.append(number)
        raise Terminated(number)

    show = sys.unraisablehook

    def show_others(event):
        if not isinstance(event.exc_value, Terminated):
            show(event)

    sys.unraisablehook = show_others
    try:
        with _handled_by(end):
            yield
    except BaseException as error:
        if came and not isinstance(error, Terminated):
            raise Terminated(came[0]) from error
        raise
    finally:
        if sys.unraisablehook is show_others:  # or somebody else's stands on it
            sys.unraisablehook = show


@contextmanager
def stop_on_signals() -> Iterator[Interrupt]:
    """Note the first SIGTERM or SIGINT in what is yielded, and let the caller stop when it can.

    After the first signal Ctrl-C raises KeyboardInterrupt at once, and SIGTERM, which schedulers repeat, does nothing.
    Python gives signals to the main thread alone: in another one nothing is noted. The handlers of before come back.
    """
    stop = Interrupt()

    def note(number, frame):
        if stop.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = stop.number or number

    with _handled_by(note):
        yield stop


@contextmanager
def _handled_by(handler):
    """SIGTERM and Ctrl-C are the handler's, in the main thread: Python gives signals to no other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Stopping on SIGTERM and Ctrl-C: where the work can be saved, or at once where there is none."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupt", "Interrupted", "Terminated", "end_on_sigterm", "stop_on_signals", "stopped_by"]


class Interrupt:
    """A wish to stop. number: the first signal that asked for it, None before."""

    number: int | None = None

    def at(self, step: int) -> int | None:
        """The signal to stop with after `step`, None to go on."""
        return self.number


class Interrupted(Exception):
    """A signal asked to stop; the checkpoint of `step` is on disk."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"{stopped_by(signal_number)} after step {step}, which is saved")
        self.step = step
        self.signal_number = signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM where there is nothing to save: like Ctrl-C no Exception, so that nobody takes it for a fault."""


def stopped_by(signal_number: int) -> str:
    """ "stopped by SIGTERM"."""
    return f"stopped by {signal.Signals(signal_number).name}"


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Terminated where it comes, as Ctrl-C raises KeyboardInterrupt."""

    def end(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Signals are noted, the first one counts, and the handlers of before come back."""

import itertools
import os
import signal
import threading

import pytest

from hybrid_flax.training.signals import Terminated, end_on_signals, stop_on_signals

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def send(number):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("first, second", list(itertools.product(NUMBERS, NUMBERS)))
def test_the_first_signal_is_noted_and_a_second_ctrl_c_acts_at_once(first, second):
    before = handlers()
    with stop_on_signals() as stop:
        assert stop.number is None and stop.at(3) is None
        send(first)
        assert stop.number == first == stop.at(3)
        if second == signal.SIGINT:
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    send(second)
        else:
            send(second)
        assert stop.number == first
    assert handlers() == before


def test_handlers_come_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        assert handlers() != before
        1 / 0  # noqa: B018
    assert handlers() == before


def test_nested_stops_note_the_signal_innermost():
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            send(signal.SIGTERM)
        assert (outer.number, inner.number) == (None, signal.SIGTERM)
        send(signal.SIGINT)
        assert outer.number == signal.SIGINT


def test_another_thread_catches_nothing():
    before, seen = handlers(), []

    def work():
        with stop_on_signals() as stop:
            seen.extend([handlers(), stop.number])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


@pytest.mark.parametrize("number", NUMBERS)
def test_where_there_is_nothing_to_save_a_signal_ends_at_once(number):
    """Also where a library makes an error of its own of it, as one does whose import is cut short."""
    before = handlers()
    for error in (None, ImportError):
        with pytest.raises(Terminated, match=f"stopped by {number.name}") as stop, end_on_signals():
            try:
                send(number)
            except KeyboardInterrupt:
                if error is None:
                    raise
                raise error("the extension is broken") from None
        assert stop.value.signal_number == number and handlers() == before

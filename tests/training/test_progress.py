"""What stands on the terminal and in a log while a run trains and evaluates."""

import io
import sys

import jax.numpy as jnp
import pytest
from rich.console import Console

from hybrid_flax.training.progress import Progress, track


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("hybrid_flax.training.progress.time.monotonic", lambda: self.now)


ROW = {"step": 200, "train/loss": 1.9012, "perf/tokens_per_sec": 18234.0, "train/learning_rate": 2.5e-3}


def plain(**kwargs):
    out = io.StringIO()
    return out, Progress(console=Console(file=out, width=40), **kwargs)


def test_plain_lines(monkeypatch):
    clock = Clock(monkeypatch)
    out, progress = plain(total_steps=2000, initial_step=90, metric="accuracy")
    with progress:
        clock.now += 50  # compilation is not part of the pace
        progress.update(100, {"train/loss": jnp.float32(2.5), "eval/loss": 1.87, "eval/mse": 1.0, "eval/accuracy": 0.5})
        clock.now += 10
        progress.message("saved [best] checkpoint")
        progress.update(200, ROW)
        progress.update(300, {"train/loss": "nan", "other/metric": 3})
    assert out.getvalue().splitlines() == [
        "step  100/2000  train/loss 2.5000  eval/loss 1.8700  eval/accuracy 0.5000  eta -:--",
        "saved [best] checkpoint",
        "step  200/2000  train/loss 1.9012  tokens/s 18.2 k  lr 2.5e-03  eta 3:00",
        "step  300/2000  train/loss nan  tokens/s 18.2 k  lr 2.5e-03  eta 1:25",
    ]


def test_plain_lines_are_thinned_but_never_lose_an_evaluation_or_the_end(monkeypatch):
    clock = Clock(monkeypatch)
    out, progress = plain(total_steps=60, seconds_between_lines=10.0)
    with progress:
        for step in range(1, 61):
            clock.now += 1
            progress.update(step, {"eval/loss": 1.0} if step == 15 else {"train/loss": 1.0 / step})
    steps = [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == [1, 11, 15, 25, 35, 45, 55, 60]


@pytest.mark.parametrize("seconds, text", [(42, "0:42"), (3599.6, "1:00:00"), (3723, "1:02:03"), (100_000, "27:46:40")])
def test_eta(monkeypatch, seconds, text):
    clock = Clock(monkeypatch)
    out, progress = plain(total_steps=3)
    with progress:
        progress.update(1, {})
        clock.now += seconds
        progress.update(2, {})
    assert out.getvalue().splitlines()[-1] == f"step 2/3  eta {text}"


@pytest.mark.parametrize(
    "speed, text", [(7.4, "7.4"), (999, "999"), (18234, "18.2 k"), (3.21e6, "3.21 M"), (5e9, "5 G")]
)
def test_speed(speed, text):
    out, progress = plain(total_steps=3)
    with progress:
        progress.update(1, {"perf/tokens_per_sec": speed})
    assert f"tokens/s {text}  eta" in out.getvalue()


def terminal(width=100):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=20, legacy_windows=False)
    return out, Progress(2000, 100, console=console)


def test_terminal_shows_a_bar_and_restores_the_cursor():
    out, progress = terminal()
    with progress:
        progress.update(150, {"eval/loss": 1.87})
        progress.message("saved [best] checkpoint")
        shown = out.getvalue()
        progress.update(200, ROW)
    text = out.getvalue()
    assert "step  150/2000  eval/loss 1.8700" in shown  # a message redraws what stands below it
    last = text.rsplit("\x1b[2K", 1)[-1]
    assert "saved [best] checkpoint" in text and "━" in text and "10%" in text
    assert "step  200/2000  train/loss 1.9012  eval/loss 1.8700 @150  tokens/s 18.2 k  lr 2.5e-03" in last
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # cursor hidden, then shown again


def test_terminal_is_sane_after_an_exception_and_in_a_narrow_window():
    out, progress = terminal(width=30)
    with pytest.raises(KeyboardInterrupt), progress:
        progress.update(200, ROW)
        raise KeyboardInterrupt
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "step  200/2000" in text and "…" in text and text.endswith("\n\x1b[?25h")
    progress.message("afterwards")
    assert out.getvalue().endswith("afterwards\n")


def test_an_evaluation_says_how_far_it_is():
    out, progress = terminal()
    with progress:
        progress.update(150, ROW)
        assert list(progress.track(range(3), "valid batch")) == [0, 1, 2]
        progress.message("done")
    text = out.getvalue()
    assert "valid batch 0/3" in text or "valid batch 2/3" in text
    assert "valid batch" not in text.rsplit("\x1b[2K", 1)[-1]
    out, progress = plain(total_steps=3)
    with progress:
        assert list(progress.track(range(3), "valid batch")) == [0, 1, 2]
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_track(terminal, monkeypatch):
    """On stderr alone, and there alone on a terminal, of which nothing is left."""
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert list(track(iter("abc"), "sample", total=3)) == ["a", "b", "c"]
    assert out.getvalue() == ""
    assert ("sample" in err.getvalue()) == terminal and err.getvalue().endswith("\x1b[2K" if terminal else "")

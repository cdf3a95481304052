"""Writers of training rows: files that survive kills and resumes, and what a reader of the terminal sees."""

import io
import json
import math
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from hybrid_flax.train.writers import JsonlWriter, Progress, TensorBoardWriter, read_jsonl, truncate_jsonl

ROWS = [{"step": s, "train/loss": 1.0 / s} for s in (1, 2, 3)]


def write(path, rows):
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def test_rows_come_back_in_order_and_exactly(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    row = {
        "step": 3,
        "z": 0.1 + 0.2,
        "a": math.nan,
        "b": math.inf,
        "c": -math.inf,
        "name": "lstm",
        "none": None,
    }
    write(path, [row])
    text = path.read_text()
    assert text == (
        '{"step": 3, "z": 0.30000000000000004, "a": "nan", "b": "inf", "c": "-inf", "name": "lstm", "none": null}\n'
    )
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity outside the JSON standard
    (back,) = read_jsonl(path)
    assert list(back) == list(row) and math.isnan(back.pop("a"))
    assert back == {k: v for k, v in row.items() if k != "a"}


def test_scalars_of_numpy_and_jax(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, [{"step": np.int64(2), "a": jnp.float32(0.5), "b": np.float32(math.nan), "c": np.bool_(True)}])
    assert path.read_text() == '{"step": 2, "a": 0.5, "b": "nan", "c": true}\n'


def test_each_row_is_on_disk_before_close(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write(ROWS[0])
    assert read_jsonl(tmp_path / "m.jsonl") == ROWS[:1]
    writer.close()


@pytest.mark.parametrize("torn", [b'{"step": 4, "tr', b'{"step": 4, "train/loss": 0.25}', b"{", b"\x00\x00\n"])
def test_torn_last_line(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    write(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_jsonl(path) == ROWS
    write(path, [{"step": 5}])  # the next writer does not glue its row to the torn one
    assert path.read_bytes() == whole + b'{"step": 5}\n'


def test_damage_elsewhere_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:2: not a JSON object"):
        read_jsonl(path)


def test_missing_and_empty_files(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []
    truncate_jsonl(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()
    (tmp_path / "empty.jsonl").touch()
    assert read_jsonl(tmp_path / "empty.jsonl") == []


def test_truncate_keeps_bytes_up_to_the_step_and_is_idempotent(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step":1,"x":1.50}\n{"note": "no step"}\n{"step": 2}\n{"step": 3}\n{"step": 4')
    os.chmod(path, 0o640)
    for _ in range(2):
        truncate_jsonl(path, 2)
        assert path.read_bytes() == b'{"step":1,"x":1.50}\n{"note": "no step"}\n{"step": 2}\n'
    assert os.listdir(tmp_path) == ["m.jsonl"] and path.stat().st_mode & 0o777 == 0o640
    truncate_jsonl(path, 0)
    assert read_jsonl(path) == [{"note": "no step"}]


def test_truncate_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    write(path, ROWS)

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        truncate_jsonl(path, 1)
    assert read_jsonl(path) == ROWS and os.listdir(tmp_path) == ["m.jsonl"]


def test_resume_gives_the_file_of_an_uninterrupted_run(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, ROWS)
    write(resumed, ROWS[:2])
    with resumed.open("a") as file:
        file.write('{"step": 3, "tra')
    truncate_jsonl(resumed, 1)  # the checkpoint is of step 1
    write(resumed, ROWS[1:])
    assert resumed.read_bytes() == whole.read_bytes()


def test_tensorboard_scalars_can_be_read_back(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with TensorBoardWriter(tmp_path) as writer:
        writer.write({"step": 7, "train/loss": 1.5, "eval/loss": "nan", "name": "lstm", "perf/tokens": jnp.int32(9)})
    with TensorBoardWriter(tmp_path, purge_step=8) as writer:
        writer.write({"step": 8, "train/loss": 1.25})
    events = [e for path in sorted(tmp_path.glob("events.out.tfevents.*")) for e in tensorboard_events(path, Event)]
    scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert math.isnan(scalars.pop((7, "eval/loss")))
    assert scalars == {(7, "train/loss"): 1.5, (7, "perf/tokens"): 9.0, (8, "train/loss"): 1.25}
    assert any(e.session_log.status == 1 and e.step == 8 for e in events)  # START: hide what stood from 8 on


def tensorboard_events(path, event_type):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length (8 bytes), its checksum (4), the record, its checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        yield event_type.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError) as error:
        TensorBoardWriter(tmp_path)
    assert str(error.value) == "TensorBoard logging needs tensorboardX: pip install 'hybrid_flax[tensorboard]'"
    assert error.value.__suppress_context__


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("hybrid_flax.train.writers.time.monotonic", lambda: self.now)


ROW = {"step": 200, "train/loss": 1.9012, "perf/tokens_per_sec": 18234.0, "train/learning_rate": 2.5e-3}


def plain(**kwargs):
    out = io.StringIO()
    return out, Progress(console=Console(file=out, width=40), **kwargs)


def test_plain_lines(monkeypatch):
    clock = Clock(monkeypatch)
    out, progress = plain(total_steps=2000, initial_step=90)
    with progress:
        clock.now += 50  # compilation is not part of the pace
        progress.update(100, {"train/loss": jnp.float32(2.5), "eval/loss": 1.87, "eval/accuracy": 0.5})
        clock.now += 10
        progress.message("saved [best] checkpoint")
        progress.update(200, ROW)
        progress.update(300, {"train/loss": "nan", "other/metric": 3})
    assert out.getvalue().splitlines() == [
        "step  100/2000  train/loss 2.5000  eval/loss 1.8700  eval/accuracy 0.5000  eta -:--",
        "saved [best] checkpoint",
        "step  200/2000  train/loss 1.9012  eval/loss 1.8700  eval/accuracy 0.5000  tokens/s 18.2k  lr 2.5e-03"
        "  eta 3:00",
        "step  300/2000  train/loss nan  eval/loss 1.8700  eval/accuracy 0.5000  tokens/s 18.2k  lr 2.5e-03  eta 1:25",
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


@pytest.mark.parametrize("speed, text", [(7.4, "7"), (999, "999"), (18234, "18.2k"), (3.21e6, "3.2M"), (5e9, "5.0G")])
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
    assert "step  200/2000  train/loss 1.9012  eval/loss 1.8700  tokens/s 18.2k  lr 2.5e-03" in last
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

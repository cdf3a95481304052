"""Writers of training rows: files that survive kills and resumes, and what a reader of the terminal sees."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.training.writers import JsonlWriter, read_jsonl, truncate_jsonl

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
    with pytest.raises(ValueError, match=r"m\.jsonl:2: no row of metrics"):
        read_jsonl(path)
    path.write_text('{"step": 1}\n{"format": "x"}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:2: a row without 'step': \{'format': 'x'\}"):
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
    assert read_jsonl(path, needs="note") == [{"note": "no step"}]


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

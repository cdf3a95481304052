"""Loggers: what they are given, and what becomes of a run whose logger fails."""

import math
import sys

import jax.numpy as jnp
import pytest

from hybrid_flax.train.loggers import TensorBoardWriter


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
    assert str(error.value) == "it needs tensorboardX: pip install 'hybrid_flax[tensorboard]'"

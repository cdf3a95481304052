"""Trials as jobs of submitit: its parameters, and what is missing; a real job is in test_end_to_end.py."""

import pytest

from hybrid_flax.config import ConfigError
from hybrid_flax.sweep.slurm import SlurmExecutor, parse_parameters

pytest.importorskip("submitit")


def test_parameters():
    assert parse_parameters("partition=gpu,timeout_min=60,gpus_per_node=1") == {
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "gpus_per_node": 1,
    }
    assert parse_parameters("") == {}
    with pytest.raises(ConfigError, match="'gpu' is no NAME=VALUE"):
        parse_parameters("gpu")


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs SLURM's sbatch"):
        SlurmExecutor(tmp_path, 1, {})
    (tmp_path / "sbatch").touch(0o755)
    (tmp_path / "srun").touch(0o755)
    with pytest.raises(ConfigError, match=r"--slurm: .*slurm_partitoin") as caught:
        SlurmExecutor(tmp_path, 1, parse_parameters("partitoin=gpu"))
    assert "\n" not in str(caught.value)

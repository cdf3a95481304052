"""The runner of the certificate: how cases are spread, and what a failure says."""

import json

import jax.numpy as jnp
import pytest

from hybrid_flax import make_mixer, register_mixer
from hybrid_flax.certify import PROPERTIES, certify
from hybrid_flax.cli import main
from hybrid_flax.mixers import registry
from hybrid_flax.typing import Segments


@pytest.fixture
def broken():
    """A registered mixer whose convolution does not see where a document begins."""
    sound = make_mixer("conv", 16)

    def forgetful(width):
        def apply(params, x, segments, state=None):
            return sound.apply(params, x, Segments((segments.ids > 0).astype(jnp.int32), segments.positions), state)

        return sound._replace(apply=apply)

    register_mixer("forgetful", forgetful)
    yield "forgetful"
    del registry._primitives["forgetful"]


@pytest.mark.slow
def test_cases_are_spread_evenly():
    rows = list(certify(["conv", "tanh"], cases=41))
    totals = [sum(finding.cases for finding in row) for row in rows]
    assert sorted(totals) == [20, 21]
    assert [len(row) for row in rows] == [len(PROPERTIES) - 3, len(PROPERTIES) - 1]


def test_smallest_failing_case(broken):
    (row,) = certify([broken], cases=60)
    failed = {finding.property: finding.counterexample for finding in row if finding.counterexample is not None}
    assert {"packed", "causal"} <= failed.keys() <= {"packed", "causal", "rows", "split"}
    rows = failed["causal"].arguments["rows"]
    assert "".join(rows).count(".") == 47 and "".join(rows).count("n") == 1


@pytest.mark.slow
def test_command(broken, tmp_path, capsys):
    assert main(["certify", "--mixers=conv", "--cases=20", f"--workdir={tmp_path}/good"]) == 0
    assert " 0 failures" in capsys.readouterr().out
    assert main(["certify", f"--mixers=conv,{broken}", "--cases=40", f"--workdir={tmp_path}/bad"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and f"prove('{broken}', 'packed', orders=" in out
    record = json.loads((tmp_path / "bad" / "certificate.json").read_text())
    bad = [entry for entry in record["findings"] if entry["counterexample"]]
    assert {entry["mixer"] for entry in bad} == {broken} and all(entry["worst"] is None for entry in bad)
    table = (tmp_path / "bad" / "certificate.md").read_text()
    assert "| `conv` | " in table and "FAIL (" in table


def test_mistakes_are_one_line(capsys, tmp_path):
    assert main(["certify", "--mixers=lstn", f"--workdir={tmp_path}"]) == 2
    assert main(["certify", "--cases=0", f"--workdir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "nearest: lstm" in err

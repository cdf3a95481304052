"""The list of seeded faults fits the code."""

import faults
import pytest

FAULTS = faults.read_faults()


def test_there_are_enough_in_every_part():
    parts = {fault.file.split("/")[1].removesuffix(".py") for fault in FAULTS}
    assert len(FAULTS) >= 40
    assert {"ops", "cells", "mixers", "data", "models", "tasks", "training", "sweep", "compare"} <= parts


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_still_applies(fault):
    source = (faults.ROOT / fault.file).read_text(encoding="utf-8")
    changed = faults.mutated(fault, source)
    assert changed != source
    compile(changed, fault.file, "exec")


def test_every_name_is_its_own():
    """TOML sees to it within the list; the name of the run without a fault must not be in it."""
    assert len({fault.name for fault in [*FAULTS, faults.NO_FAULT]}) == len(FAULTS) + 1


def test_what_does_not_apply_is_refused():
    fault = faults.Fault("twice", "hybrid_flax/ops/scan.py", "jnp", "np")
    with pytest.raises(ValueError, match=r"twice: 'jnp' stands 2 times in hybrid_flax/ops/scan.py, not once"):
        faults.mutated(fault, "import jnp\njnp.zeros(3)\n")


def test_stages_go_from_near_to_far_and_run_no_test_twice():
    fault = faults.Fault("any", "hybrid_flax/mixers/fusion.py", "", "")
    found = dict(faults.stages(fault, faults.ROOT))
    assert list(found) == ["file", "folder", "certify", "rest"]
    assert found["file"][0] == "tests/mixers/test_fusion.py"
    assert found["rest"][0] == "tests"
    assert {"--ignore=tests/mixers/test_fusion.py", "--ignore=tests/mixers", "--ignore=tests/certify"} < set(
        found["rest"]
    )

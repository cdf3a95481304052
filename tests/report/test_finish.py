"""What a run says at its end."""

import io
import json

import pytest
import tiny
from rich.console import Console

from hybrid_flax.config import apply_overrides
from hybrid_flax.report.finish import finish_run
from hybrid_flax.training.evaluate import evaluate_split
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.loop import train
from hybrid_flax.training.setup import make_setup


def trained(config, folder, capsys):
    """(run, results, what is said while it trains, what is printed at the end)."""
    out = io.StringIO()
    run, results = train(config, folder, console=Console(file=out))
    finish_run(folder, run, results)
    return run, results, out.getvalue(), capsys.readouterr().out


def test_final_batches_cap_the_last_evaluation_alone(text, tmp_path, capsys):
    config = tiny.tiny_config(text, eval__final_batches=2, eval__every=3)
    run, results, _, printed = trained(config, tmp_path / "capped", capsys)
    whole, _, _, printed_whole = trained(apply_overrides(config, ["eval.final_batches=0"]), tmp_path / "whole", capsys)
    experiment = make_setup(config)
    assert results["valid"] == evaluate_split(experiment, config, run.params, "valid", max_batches=2)
    assert results["valid"]["loss"] != evaluate_split(experiment, config, whole.params, "valid")["loss"]
    assert "every row from nothing, eval.final_batches=2 ---" in printed
    assert "every row from nothing ---" in printed_whole
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("capped", "whole")]
    assert rows[0] == rows[1]
    assert RunFolder(tmp_path / "capped").sample.read_text() == RunFolder(tmp_path / "whole").sample.read_text()


@pytest.mark.parametrize(("length", "cut"), [(4, True), (15, False)])
def test_rows_that_were_cut_are_told(length, cut, tmp_path, capsys):
    lines = [{"text": " ".join("abc"[: 1 + i % 3] * (1 + i % 5)), "label": "xy"[i % 2]} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"task__name": "classify", "data__mode": "padded", "data__tokenizer": "word", "data__test_fraction": 0.2}
    config = tiny.tiny_config(tmp_path / "data.jsonl", **changes, data__length=length, model__pattern="tanh")
    _, _, said, printed = trained(config, tmp_path / "run", capsys)
    lengths = {name: split.lengths for name, split in make_setup(config).source.splits.items()}
    for split in ("valid", "test"):
        longer = sum(tokens > length for tokens in lengths[split])
        line = f"{split}: {longer} of 8 rows are cut at {length} tokens, the longest has {max(lengths[split])}\n"
        assert (line in said) == bool(longer)
        assert f"\n{split:5}  loss " in printed
    assert (" rows are cut at " in said) == cut

"""The model card of an export."""

import json

from hybrid_flax.report.model_card import model_card
from hybrid_flax.runs import load_run
from hybrid_flax.training.folder import RunFolder


def test_it_says_what_there_is(finished):
    run, results = load_run(finished), json.loads((finished / "results.json").read_text())
    card = model_card(run, RunFolder(finished), "my-model")
    assert "# my-model" in card and "cascade:lstm+swa" in card and "## Licence" in card
    assert f"loss {results['valid']['loss']:.4f}" in card
    assert f"After {run.step} updates, every row from nothing." in card
    assert str(run.config.data.path) in card and "hybrid-flax import" in card


def test_a_name_cannot_be_a_page(finished):
    card = model_card(load_run(finished), RunFolder(finished), "a\n# b")
    assert "# a\\n# b" in card.splitlines()

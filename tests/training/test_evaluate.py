"""Evaluation counts every target once, whatever the batches, and says what it means per character and byte."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.data.pipeline import eval_stream, eval_windows, tokenize
from hybrid_flax.data.sources import cut_rows
from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.training.evaluate import eval_length, evaluate, split_batches
from hybrid_flax.training.parallel import make_parallel
from hybrid_flax.training.setup import read_source
from hybrid_flax.typing import Segments

TEXTS = ["naïve café — déjà vu, 日本語 or 🙂", "x", "", "the second one is a little longer than the first was"]
PARALLEL = make_parallel("jit")
TASK = make_language_modelling()


@pytest.fixture(scope="module", params=["char", "byte", "word"])
def case(request):
    """(model, params, tokens) of texts beyond ASCII, in one vocabulary."""
    tokenizer = make_tokenizer(request.param, TEXTS[:1])
    tokens = tokenize(TEXTS, tokenizer)
    model = make_model(vocab_size=tokenizer.vocab_size, width=8, depth=2, pattern="gru,swa", options=OPTIONS)
    return model, jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)), tokens


OPTIONS = (("swa.num_heads", 2), ("swa.window", 3))


def direct(model, params, tokens):
    """(nats, targets, right ones, characters, bytes) of every document read whole."""
    sums = np.zeros(5)
    for number in np.unique(tokens.document):
        inside = tokens.document == number
        ids = jnp.asarray(tokens.ids[inside])[None]
        logits, _ = model.apply({"params": params}, ids, Segments.single(1, ids.shape[1]))
        log_p = np.asarray(jax.nn.log_softmax(logits[0, :-1].astype(jnp.float32)), np.float64)
        target = np.asarray(ids[0, 1:])
        sums += [
            -np.sum(log_p[np.arange(len(target)), target]),
            len(target),
            np.sum(np.argmax(log_p, axis=-1) == target),
            np.sum(tokens.num_chars[inside][1:]),
            np.sum(tokens.num_bytes[inside][1:]),
        ]
    return sums


def run(case, task=TASK, *, carried=False, max_batches=0, **sizes):
    model, params, tokens = case
    batches = (eval_stream if carried else eval_windows)(tokens, **sizes)
    return evaluate(model, task, params, batches, PARALLEL, carried=carried, max_batches=max_batches)


@pytest.mark.slow
def test_carried_is_every_document_as_a_whole(case):
    """One stream, or a window that holds the text: the sums of documents read alone."""
    nats, count, right, chars, num_bytes = direct(*case)
    for sizes in ({"batch_size": 1, "length": 4, "carried": True}, {"batch_size": 2, "length": 128}):
        found = run(case, **sizes)
        assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
        assert found["accuracy"] == pytest.approx(right / count)
        assert found["bits_per_char"] == pytest.approx(nats / math.log(2) / chars, rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_every_target_counts_once(case):
    """A task that counts instead of measuring, over batches of many shapes."""
    model, _, tokens = case
    wanted = np.bincount(tokens.ids[tokens.position > 0], minlength=model.design.vocab_size)

    def evaluation(logits, batch):
        one_hot = jax.nn.one_hot(batch.targets, model.design.vocab_size) * batch.weights[..., None]
        return {f"target {i}": jnp.sum(one_hot[..., i]) for i in range(model.design.vocab_size)}

    counting = TASK._replace(evaluate=evaluation, measure=lambda sums: {name: float(v) for name, v in sums.items()})
    for carried in (False, True):
        found = run(case, counting, batch_size=3, length=5, carried=carried)
        assert [found[f"target {i}"] for i in range(model.design.vocab_size)] == wanted.tolist()


def test_a_few_batches(case):
    model, params, tokens = case
    some = run(case, batch_size=2, length=6, max_batches=1)
    part = tokens._replace(**{name: getattr(tokens, name)[:13] for name in tokens._fields})
    assert some["loss"] == pytest.approx(run((model, params, part), batch_size=2, length=6)["loss"], rel=1e-6)
    assert run(case, batch_size=2, length=6, max_batches=1000) == run(case, batch_size=2, length=6)


def test_tags_of_long_sentences_are_scored(tmp_path):
    """Training may cut a sentence, an evaluation may not: what lies beyond would be neither found nor missed."""
    path = tmp_path / "data.conll"
    path.write_text("\n\n".join("\n".join(["word O"] * 9 + ["name B-X"]) for _ in range(8)) + "\n")
    config = tiny.tiny_config(path, task__name="tag", data__mode="padded", data__length=4, model__pattern="tanh")
    source = read_source(config)
    for split in ("train", "valid"):
        rows = len(source.splits[split].lengths)
        batches = split_batches(source, config, split)
        assert sum(int(np.sum(batch.weights)) for batch in batches) == 10 * rows
        assert cut_rows(source.splits[split], eval_length(config, source)) == ""
    assert cut_rows(source.splits["train"], 4).startswith("6 of 6 rows are cut at 4 tokens")

"""Text from a run: pieces, choices, memory and mistakes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.errors import ConfigError
from hybrid_flax.generate import _make_write, generate, sample_token
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.training.folder import Run
from hybrid_flax.typing import Segments

OPTIONS = (("attn.num_heads", 2), ("swa.num_heads", 2), ("swa.window", 4))
LONG = "abc dab. " * 20  # more than two chunks of a prompt


def make_run(pattern, tokenizer="char", depth=2):
    tokenizer = make_tokenizer(tokenizer, ["abcd. "])
    model = make_model(vocab_size=tokenizer.vocab_size, width=8, depth=depth, pattern=pattern, options=OPTIONS)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    # Sharper than at the start of training, so that choices differ.
    params = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    return Run(model, params, tokenizer, tiny.tiny_config("text.txt"), 0)


@pytest.fixture(scope="module", params=["gru,swa", "cascade:lstm+attn"])
def run(request):
    return make_run(request.param)


def text_of(run, prompt, **options):
    return "".join(generate(run, prompt, **{"num_tokens": 40} | options))


def likeliest(run, prompt, num_tokens):
    """Token by token from full calls without a state."""
    ids = run.tokenizer.encode(prompt).tolist()
    size = len(ids) + num_tokens
    apply = jax.jit(lambda tokens: run.model.apply({"params": run.params}, tokens, Segments.single(1, size))[0])
    for _ in range(num_tokens):
        tokens = jnp.asarray([ids + [0] * (size - len(ids))], jnp.int32)
        logits = apply(tokens)[0, len(ids) - 1].at[run.tokenizer.unknown_id].set(-jnp.inf)  # never said
        ids.append(int(jnp.argmax(logits)))
    return run.tokenizer.decode(ids[-num_tokens:])


@pytest.mark.parametrize("prompt", ["a", LONG], ids=["short", "long"])
def test_greedy_is_the_argmax_of_full_calls(run, prompt):
    found = text_of(run, prompt, temperature=0.0)
    assert found == likeliest(run, prompt, 40)
    assert text_of(run, prompt, temperature=0.7, top_k=1) == found
    assert text_of(run, prompt, temperature=0.7, top_p=1e-6) == found


def test_pieces_and_seeds(run):
    pieces = list(generate(run, "ab", num_tokens=40, seed=3))
    whole = "".join(pieces)
    assert len(pieces) == 3 and len(whole) == 40
    assert text_of(run, "ab", seed=3) == whole
    assert text_of(run, "ab", seed=3, num_tokens=25) == whole[:25]
    assert text_of(run, "ab", seed=4, temperature=5.0) != text_of(run, "ab", seed=3, temperature=5.0)
    assert text_of(run, "ab", num_tokens=0) == ""


def test_bytes_join_to_whole_characters():
    """A model that always says é again, in a byte vocabulary: pieces hold whole characters."""
    run = make_run("gru", "byte", depth=1)
    first, second = "é".encode()

    class Echo:
        """Stands for a model: after the first byte of é the second, and the other way round."""

        @staticmethod
        def init_state(batch_size, capacity):
            return jnp.zeros((batch_size,))

        @staticmethod
        def apply(variables, tokens, segments, state):
            following = jnp.where(tokens == first, second, first)
            return 50.0 * jax.nn.one_hot(following, 256), state

    pieces = list(generate(run._replace(model=Echo()), "aé", num_tokens=33))
    assert pieces == ["é" * 8, "é" * 8, "\N{REPLACEMENT CHARACTER}"]
    assert pieces == list(generate(run._replace(model=Echo()), "é", num_tokens=33))


def test_unknown_characters_are_read_and_mistakes_are_named(run):
    assert len(text_of(run, "a ψ b")) == 40
    assert text_of(run, "ψ", temperature=0.0) == text_of(run, "ω", temperature=0.0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(run, "", num_tokens=3)
    wrongs = (
        *(("temperature", -0.1), ("temperature", math.nan), ("temperature", 1e300), ("temperature", math.inf)),
        *(("top_k", -1), ("top_k", 2**31), ("top_p", 0.0), ("top_p", 1.1)),
    )
    for name, wrong in wrongs:
        with pytest.raises(ConfigError, match=rf"sample\.{name}=.* must be"):
            generate(run, "a", **{"num_tokens": 3, name: wrong})
    with pytest.raises(ConfigError, match=r"sample\.tokens=-1"):
        generate(run, "a", num_tokens=-1)


def test_state_keeps_its_size(run):
    model = run.model
    state, logits = model.init_state(1, 256), jnp.zeros(model.design.vocab_size)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    choice = (jnp.float32(1.0), jnp.int32(0), jnp.float32(1.0))
    for position in (0, 16):
        _, logits, state = _make_write(model, None)(
            run.params, logits, state, jnp.int32(position), jax.random.key(position), *choice
        )
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes


LOGITS = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))


def share(temperature=1.0, top_k=0, top_p=1.0, count=4000):
    """How often every token comes."""
    keys = jax.random.split(jax.random.key(0), count)
    arguments = (jnp.asarray(LOGITS), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    tokens = jax.jit(jax.vmap(sample_token, in_axes=(0, None, None, None, None)))(keys, *arguments)
    return np.bincount(np.asarray(tokens), minlength=4) / count


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({}, [0.05, 0.5, 0.15, 0.3]),
        ({"temperature": 0.5}, np.array([0.0025, 0.25, 0.0225, 0.09]) / 0.365),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 9}, [0.05, 0.5, 0.15, 0.3]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.9}, [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]),
        ({"top_p": 0.9, "top_k": 2}, [0, 0.625, 0, 0.375]),
    ],
)
def test_sampling(choice, wanted):
    found, wanted = share(**choice), np.asarray(wanted)
    assert not np.any(found[wanted == 0])
    np.testing.assert_allclose(found, wanted, atol=4 * 0.5 / 4000**0.5)

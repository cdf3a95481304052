"""Text from a run: the prompt is read once, then one token a step from the carried state, at constant memory."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.data.tokenizers import stream_decoder
from hybrid_flax.knobs import check_range
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.folder import Run
from hybrid_flax.typing import Array, Float, Int, Key, Scalar, Segments

__all__ = ["generate", "num_pieces", "sample_token"]

_CHUNK = 64  # tokens of the prompt read per call, padded to that: one compilation for every prompt
_STRIDE = 16  # tokens generated per call


def generate(
    run: Run,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of the text that follows `prompt`, as they come; joined they are `num_tokens` tokens.

    temperature: 0 takes the likeliest token. top_k: of the k likeliest, 0 for all. top_p: of the fewest tokens
    that hold this much probability (Holtzman et al. 2020, section 3.1). Raises ValueError for an empty prompt and
    for values out of the range of their knob `sample.*`.
    """
    if not make_task(run.config, run.labels).generates:
        raise ValueError(f"a run of task.name={run.config.task.name} has no next token to generate")
    tokens = np.asarray(run.tokenizer.encode(prompt), np.int32)
    if not len(tokens):
        raise ValueError("the prompt is empty: give at least one token to go on from")
    for name, value in (("tokens", num_tokens), ("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        check_range(f"sample.{name}", value)
    return _generate(run, tokens, num_tokens, (temperature, top_k, top_p), jax.random.key(seed))


def num_pieces(num_tokens: int) -> int:
    """How many pieces `generate` yields."""
    return -(-num_tokens // _STRIDE)


def sample_token(
    key: Key[Array, ""],
    logits: Float[Array, "V"],
    temperature: Scalar,
    top_k: Int[Array, ""],
    top_p: Scalar,
) -> Int[Array, ""]:
    """One token of softmax(logits / temperature) cut to the top k and to the top p; all three may be traced."""
    vocab_size = logits.shape[0]
    scaled = logits / jnp.maximum(temperature, 1e-6)
    order = jnp.argsort(-scaled)
    probabilities = jax.nn.softmax(scaled)[order]
    rank = jnp.arange(vocab_size, dtype=jnp.int32)
    before = jnp.cumsum(probabilities) - probabilities
    allowed = (rank < jnp.where(top_k > 0, top_k, vocab_size)) & ((before < top_p) | (rank == 0))
    choice = jax.random.categorical(key, jnp.where(allowed, scaled[order], -jnp.inf))
    return jnp.where(temperature > 0, order[choice], order[0]).astype(jnp.int32)


def _generate(run, tokens, num_tokens, choice, key):
    # Rounded up, so that runs of nearly the same length share a compilation.
    capacity = -(-(len(tokens) + num_tokens) // 256) * 256
    state = run.model.init_state(1, capacity)
    read, write = _make_read(run.model), _make_write(run.model, run.tokenizer.unknown_id)
    for start in range(0, len(tokens), _CHUNK):
        chunk = tokens[start : start + _CHUNK]
        live = np.arange(_CHUNK) < len(chunk)
        padded = np.where(live, np.pad(chunk, (0, _CHUNK - len(chunk))), 0)
        positions = np.where(live, start + np.arange(_CHUNK), 0)
        segments = Segments._make((live.astype(np.int32)[None], positions[None]))  # of numpy until they are read
        logits, state = read(run.params, padded[None], segments, state, len(chunk) - 1)
    decode = stream_decoder(run.tokenizer)
    position = len(tokens)
    options = tuple(np.asarray(value, kind) for value, kind in zip(choice, (np.float32, np.int32, np.float32)))
    while num_tokens > 0:
        key, step_key = jax.random.split(key)
        new, logits, state = write(run.params, logits, state, np.int32(position), step_key, *options)
        new = np.asarray(new)[:num_tokens]
        num_tokens -= len(new)
        position += len(new)
        yield decode(new.tolist(), final=num_tokens == 0)


@functools.cache
def _make_read(model):
    """(params, tokens[1,T], segments, state, last) -> (logits[V] after token `last`, state)."""

    def read(params, tokens, segments, state, last):
        segments = Segments(*(jnp.asarray(part, jnp.int32) for part in segments))
        logits, state = model.apply({"params": params}, tokens, segments, state)
        return logits[0, last], state

    return jax.jit(read, donate_argnums=3)


@functools.cache
def _make_write(model, unknown_id):
    """(params, logits[V], state, position, key, ...) -> (the next tokens, the logits after them, state).

    The unknown token stands for no text and is never chosen.
    """

    def write(params, logits, state, position, key, temperature, top_k, top_p):
        def step(carry, step_key):
            logits, state, position = carry
            if unknown_id is not None:
                logits = logits.at[unknown_id].set(-jnp.inf)
            token = sample_token(step_key, logits, temperature, top_k, top_p)
            segments = Segments(jnp.ones((1, 1), jnp.int32), position[None, None])
            logits, state = model.apply({"params": params}, token[None, None], segments, state)
            return (logits[0, 0], state, position + 1), token

        keys = jax.random.split(key, _STRIDE)
        (logits, state, _), tokens = jax.lax.scan(step, (logits, state, position), keys)
        return tokens, logits, state

    return jax.jit(write, donate_argnums=2)

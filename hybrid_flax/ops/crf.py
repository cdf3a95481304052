"""Linear-chain conditional random fields (Lafferty et al. 2001): likelihood by the forward algorithm, Viterbi paths.

A row is the sequence of its live places; what stands between them is skipped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, Float, TokenIds, TokenMask

__all__ = ["Transitions", "best_path", "log_likelihood", "log_partition", "path_score"]


class Transitions(NamedTuple):
    """Scores of beginning with a tag [C], of going from one (first axis) to the next [C, C], of ending with one [C]."""

    start: Float[Array, "C"]
    between: Float[Array, "C C"]
    end: Float[Array, "C"]


def log_likelihood(
    emissions: Float[Array, "B T C"], tags: TokenIds, live: TokenMask, transitions: Transitions
) -> Float[Array, "B"]:
    """log p(tags | emissions) of every row; 0 for a row without live places."""
    return path_score(emissions, tags, live, transitions) - log_partition(emissions, live, transitions)


def log_partition(emissions: Float[Array, "B T C"], live: TokenMask, transitions: Transitions) -> Float[Array, "B"]:
    """log of the summed exponentials of the scores of all paths (forward algorithm); 0 without live places."""

    def step(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        alpha, begun = carry
        emission, live_t = xs
        onward = jax.nn.logsumexp(alpha[:, :, None] + transitions.between[None], axis=1)
        new = jnp.where(begun[:, None], onward, transitions.start) + emission
        return (jnp.where(live_t[:, None], new, alpha), begun | live_t), None

    batch, _, tags = emissions.shape
    first = (jnp.zeros((batch, tags), emissions.dtype), jnp.zeros(batch, bool))
    (alpha, begun), _ = lax.scan(step, first, (jnp.swapaxes(emissions, 0, 1), live.T))
    return jnp.where(begun, jax.nn.logsumexp(alpha + transitions.end[None], axis=-1), 0.0)


def path_score(
    emissions: Float[Array, "B T C"], tags: TokenIds, live: TokenMask, transitions: Transitions
) -> Float[Array, "B"]:
    """The score of one path of every row."""

    def step(
        carry: tuple[Array, Array, Array], xs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        score, last, begun = carry
        emission, tag, live_t = xs
        move = jnp.where(begun, transitions.between[last, tag], transitions.start[tag])
        new = score + move + jnp.take_along_axis(emission, tag[:, None], axis=1)[:, 0]
        return (jnp.where(live_t, new, score), jnp.where(live_t, tag, last), begun | live_t), None

    batch = emissions.shape[0]
    first = (jnp.zeros(batch, emissions.dtype), jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))
    (score, last, begun), _ = lax.scan(step, first, (jnp.swapaxes(emissions, 0, 1), tags.T, live.T))
    return jnp.where(begun, score + transitions.end[last], 0.0)


def best_path(emissions: Float[Array, "B T C"], live: TokenMask, transitions: Transitions) -> TokenIds:
    """The path of the highest score of every row (Viterbi 1967); 0 at places that are not live."""
    num_tags = emissions.shape[-1]
    stay = jnp.arange(num_tags, dtype=jnp.int32)

    def forward(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        best, begun = carry
        emission, live_t = xs
        onward = best[:, :, None] + transitions.between[None]
        came_from = jnp.argmax(onward, axis=1).astype(jnp.int32)
        new = jnp.where(begun[:, None], jnp.max(onward, axis=1), transitions.start) + emission
        pointers = jnp.where((live_t & begun)[:, None], came_from, stay)
        return (jnp.where(live_t[:, None], new, best), begun | live_t), pointers

    def backward(tag: Array, pointers: Array) -> tuple[Array, Array]:
        return jnp.take_along_axis(pointers, tag[:, None], axis=1)[:, 0], tag

    first = (jnp.zeros((emissions.shape[0], num_tags), emissions.dtype), jnp.zeros(emissions.shape[0], bool))
    (best, _), pointers = lax.scan(forward, first, (jnp.swapaxes(emissions, 0, 1), live.T))
    last = jnp.argmax(best + transitions.end[None], axis=-1).astype(jnp.int32)
    _, path = lax.scan(backward, last, pointers, reverse=True)
    return jnp.where(live, path.T, 0)

"""What every mixer costs at one width and length: sizes from `eval_shape`, FLOPs from one walk over the jaxpr."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_flax.cost import flops, tree_bytes, tree_size
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import write_whole
from hybrid_flax.mixers.registry import make_mixer, registered_mixers
from hybrid_flax.typing import Mixer, Segments

__all__ = ["MixerCost", "mixer_cost", "write_costs"]


class MixerCost(NamedTuple):
    """One mixer: parameters; FLOPs per token of a whole sequence (forward), of its training (forward, backward) and
    of decoding one token after it; bytes of one sequence's state, and of the cache that grows with the sequence.

    decode_flops, state_bytes and cache_bytes are None for a mixer that reads the future.
    """

    parameters: int
    forward_flops: float
    train_flops: float
    decode_flops: float | None
    state_bytes: int | None
    cache_bytes: int | None


def mixer_cost(mixer: Mixer, width: int, length: int) -> MixerCost:
    """The cost of a mixer over one sequence of `length` tokens of `width`; nothing is compiled or run."""
    params = jax.eval_shape(mixer.init, jax.random.key(0))
    x, ids = _rows(length, width)
    forward = flops(lambda p, x, ids, at: mixer.apply(p, x, Segments(ids, at))[0], params, x, ids, ids)

    def gradient(p, x, ids, at, dy):
        y, pullback = jax.vjp(lambda p, x: mixer.apply(p, x, Segments(ids, at))[0], p, x)
        return y, pullback(dy)

    train = flops(gradient, params, x, ids, ids, x)
    if not mixer.traits.causal:
        return MixerCost(tree_size(params), forward / length, train / length, None, None, None)
    state = jax.eval_shape(lambda: mixer.init_state(1, length))
    fixed = tree_bytes(jax.eval_shape(lambda: mixer.init_state(1, 0)))
    token, one = _rows(1, width)
    decode = flops(lambda p, x, ids, at, s: mixer.apply(p, x, Segments(ids, at), s), params, token, one, one, state)
    sizes = (fixed, tree_bytes(state) - fixed)
    return MixerCost(tree_size(params), forward / length, train / length, decode, *sizes)


def write_costs(names: Sequence[str], width: int, length: int, workdir: str | os.PathLike | None) -> None:
    """Print the costs of `names` (all registered mixers by default) as Markdown, and write them to costs.md.

    Raises ConfigError in one line for unknown names and for sizes below 1.
    """
    if width < 1 or length < 1:
        raise ConfigError(f"--width={width} and --length={length} must be at least 1")
    lines = [
        f"Width {width}, one sequence of {length} tokens. FLOPs are per token: of the forward pass, of forward and "
        "backward, of decoding the next one at its dearest. State is what a sequence carries whatever its length, "
        "cache what grows with it (to the window, where there is one), in KiB.",
        "",
        "| mixer | parameters | forward | training | decoding | state | cache |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines), flush=True)
    for name in names or registered_mixers():
        try:
            cost = mixer_cost(make_mixer(name, width), width, length)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        lines.append(_line(name, cost))
        print(lines[-1], flush=True)
    if workdir is not None:
        path = Path(workdir) / "costs.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(lines) + "\n")


def _rows(length, width):
    return jax.ShapeDtypeStruct((1, length, width), jnp.float32), jax.ShapeDtypeStruct((1, length), jnp.int32)


def _line(name, cost):
    counts = (cost.parameters, cost.forward_flops, cost.train_flops, cost.decode_flops)
    sizes = (cost.state_bytes, cost.cache_bytes)
    cells = ["" if count is None else f"{count:,.0f}" for count in counts]
    cells += ["" if size is None else f"{size / 1024:,.1f}" for size in sizes]
    return f"| `{name}` | {' | '.join(cells)} |"

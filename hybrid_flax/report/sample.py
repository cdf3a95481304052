"""Text from a run, printed as it comes."""

import sys
from collections.abc import Iterator
from typing import Any

from hybrid_flax.errors import ConfigError
from hybrid_flax.generate import generate
from hybrid_flax.training.folder import Run

__all__ = ["print_sample", "sample"]


def sample(
    run: Run,
    *,
    prompt: str | None = None,
    tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> tuple[str, Iterator[str]]:
    """The prompt and pieces of what follows it; None: as `config.sample` of the run says.

    A line on stderr says where the prompt has unknown tokens. Raises ConfigError.
    """
    given = {"prompt": prompt, "tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = run.config.sample.to_dict() | {name: value for name, value in given.items() if value is not None}
    prompt = options.pop("prompt")
    try:
        pieces = generate(run, prompt, num_tokens=options.pop("tokens"), seed=seed, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if note := run.tokenizer.note_unknown("prompt", prompt):
        print(note, file=sys.stderr)
    return prompt, pieces


def print_sample(run: Run, *, seed: int = 0, **given: Any) -> None:
    """Print the prompt and what follows it, as `sample` has them. Raises ConfigError."""
    prompt, pieces = sample(run, seed=seed, **given)
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()

"""Text from a run, printed as it comes."""

import sys

from hybrid_flax.errors import ConfigError
from hybrid_flax.generate import generate
from hybrid_flax.train.folder import Run

__all__ = ["print_sample"]


def print_sample(
    run: Run,
    *,
    prompt: str | None = None,
    tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> None:
    """Print the prompt and what follows it; None: as `config.sample` of the run says. Raises ConfigError."""
    given = {"prompt": prompt, "tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = run.config.sample.to_dict() | {name: value for name, value in given.items() if value is not None}
    prompt = options.pop("prompt")
    try:
        pieces = generate(run, prompt, num_tokens=options.pop("tokens"), seed=seed, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if note := run.tokenizer.note_unknown("prompt", prompt):
        print(note, file=sys.stderr)
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()

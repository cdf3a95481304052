"""What a person gets at the end of a run: the figures, a loss curve and a sample."""

import os

import jax

from hybrid_flax.generate import generate
from hybrid_flax.report.curves import plot_loss_curve
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.writers import read_jsonl

__all__ = ["finish_run", "format_metrics"]


def finish_run(workdir: str | os.PathLike, run: Run, results: dict[str, dict[str, float]]) -> None:
    """Draw loss.png, write sample.txt, and print both with the final metrics (process 0 alone)."""
    if jax.process_index() != 0:
        return
    folder = RunFolder(workdir)
    plot_loss_curve(read_jsonl(folder.metrics), folder.plot, title=run.config.model.pattern)
    sample = run.config.sample
    pieces = generate(
        run,
        sample.prompt,
        num_tokens=sample.tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=run.config.seed,
    )
    text = sample.prompt + "".join(pieces)
    folder.sample.write_text(text, encoding="utf-8")
    print(f"--- sample ---\n{text.strip()}\n--- after {run.step} steps, windows without carried state ---")
    for split, metrics in results.items():
        print(f"{split:5}  {format_metrics(metrics)}")
    print(f"{folder.plot}, {folder.sample}, {folder.metrics}")


def format_metrics(metrics: dict[str, float]) -> str:
    """Metrics on one line, with their units."""
    return (
        f"loss {metrics['loss']:.4f} nats/token  perplexity {metrics['perplexity']:.3f}  "
        f"{metrics['bits_per_char']:.4f} bits/char  {metrics['bits_per_byte']:.4f} bits/byte  "
        f"accuracy {100 * metrics['accuracy']:.2f} %"
    )

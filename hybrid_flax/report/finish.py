"""What a person gets at the end of a run: the figures, a loss curve and a sample."""

import os

import jax

from hybrid_flax.files import write_whole
from hybrid_flax.generate import generate, num_pieces
from hybrid_flax.report.curves import plot_loss_curve
from hybrid_flax.tasks.base import describe, find_metric
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.progress import track
from hybrid_flax.training.writers import read_jsonl

__all__ = ["finish_run", "write_sample"]


def finish_run(workdir: str | os.PathLike, run: Run, results: dict[str, dict[str, float]]) -> None:
    """Draw loss.png, sample where the task is text, and print it with the final metrics (process 0 alone)."""
    if jax.process_index() != 0:
        return
    folder = RunFolder(workdir)
    task = make_task(run.config, run.labels)
    metric = find_metric(task, run.config.eval.metric)
    files = [folder.metrics]
    if os.access(folder.path, os.W_OK):
        plot_loss_curve(read_jsonl(folder.metrics), folder.plot, metric, title=run.config.model.pattern)
        files.insert(0, folder.plot)
        if task.generates:
            print(f"--- sample ---\n{write_sample(folder, run).strip()}")
            files.append(folder.sample)
    else:
        print(f"{folder.path} cannot be written: no plot and no sample are made")
    most = run.config.eval.final_batches
    print(f"--- after {run.step} steps, every row from nothing{f', eval.final_batches={most}' if most else ''} ---")
    for split, metrics in results.items():
        print(f"{split:5}  {describe(task, metrics)}")
    print(", ".join(map(str, files)))


def write_sample(folder: RunFolder, run: Run) -> str:
    """Sample as config.sample says, write the prompt and the text to sample.txt and return them."""
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
    text = sample.prompt + "".join(track(pieces, "sample", total=num_pieces(sample.tokens)))
    write_whole(folder.sample, text)
    return text

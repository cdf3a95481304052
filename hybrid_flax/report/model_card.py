"""The page that goes with exported weights: what they are, what they were trained on, and how to load them."""

from collections.abc import Mapping
from typing import Any

from hybrid_flax.cost import tree_size
from hybrid_flax.files import read_json
from hybrid_flax.tasks.base import describe
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.units import markdown_table, printable

__all__ = ["model_card"]


def model_card(run: Run, folder: RunFolder, name: str) -> str:
    """Markdown on `run`, loaded from `folder`, as the README.md of an export called `name`."""
    config = run.config
    about = folder.read_about() if folder.about.exists() else {}
    parts = [
        "---\nlibrary_name: hybrid_flax\ntags: [jax, flax, rnn, attention]\n---\n",
        f"# {printable(name)}\n",
        f"A model of hybrid_flax: layers `{printable(config.model.pattern)}`, depth {config.model.depth}, width "
        f"{config.model.width}, {tree_size(run.params):,} parameters, for the task `{config.task.name}`. It reads text "
        f"by a `{run.tokenizer.name}` tokenizer of {run.tokenizer.vocab_size:,} tokens.\n",
        "## Data\n",
        _data(config, about, run.labels),
        "## Training\n",
        _training(run, about, folder),
        "## Figures\n",
        _figures(run, folder),
        "## How to load it\n",
        _HOW,
        "## Licence\n",
        "None is stated: whoever publishes these weights says here under which terms, and what the data allow.\n",
    ]
    return "\n".join(parts)


_HOW = """    pip install 'hybrid_flax[hub]'
    hybrid-flax import THIS_FOLDER runs/NAME
    hybrid-flax eval --workdir=runs/NAME

```python
import hybrid_flax as hf

run = hf.load_run("runs/NAME")  # or THIS_FOLDER itself
```

Another run starts from it with `--config.train.init_from=THIS_FOLDER`. `model.safetensors` holds every parameter under
its place in the model, `config.json` the config, `tokenizer.json` and `labels.json` what tokens and outputs stand for.
`experiment.py` and `modules/`, where they are here, are the source that made it, which is run only with `--trust`.
"""


def _data(config, about, labels):
    data = about.get("data")
    lines = [f"`{printable(config.data.path)}`, rows of {config.data.length} tokens, `data.mode={config.data.mode}`.\n"]
    if isinstance(data, Mapping) and data:
        lines.append(markdown_table([("split", "what it held, and its digest"), *data.items()]))
    if labels:
        lines.append(f"Labels: {', '.join(printable(label) for label in labels)}.\n")
    return "\n".join(lines)


def _training(run, about, folder):
    config = run.config
    versions: Any = about.get("versions")
    rows = [
        ("what", "value"),
        ("updates", f"{run.step:,}"),
        ("optimizer", f"{config.optim.name}, learning rate {config.optim.learning_rate:g}, {config.schedule.name}"),
        ("rows of a step", config.data.batch_size),
        ("seed", config.seed),
    ]
    if about.get("experiment"):
        rows.append(("experiment", about["experiment"]))
    if folder.start.exists():
        rows.append(("started from", config.train.init_from))
    if isinstance(versions, Mapping):
        rows.append(("made with", f"Python {about.get('python')}, jax {versions.get('jax')}"))
    return markdown_table(rows)


def _figures(run, folder):
    if not folder.results.exists():
        return "None: the run was not finished.\n"
    task, most = make_task(run.config, run.labels), run.config.eval.final_batches
    rows = [(split, describe(task, metrics)) for split, metrics in folder.read_results().items()]
    step = read_json(folder.results, dict).get("step", run.step)
    of = f", of the first {most} batches of a split" if most else ""
    return f"After {step:,} updates, every row from nothing{of}.\n\n" + markdown_table([("split", "metrics"), *rows])

"""Sweeps: axes and spaces of an experiment file, their values and names, in a dry run and on the page of results."""

import json

from fuzz.case import Case, nonsense, unknown, valid
from fuzz.judge import Action, Strategy
from fuzz.values import MARKUP

__all__ = ["SWEEPS"]

# (key, values) as source texts, of an axis of a grid
_AXES = (
    valid("'optim.learning_rate'", "[1e-3, 3e-3]"),
    valid("'model.pattern'", "['lstm', 'gru']"),
    valid("'seed'", "[0, 1, 2]"),
    valid("'train.dropout'", "(0.0, 0.1)"),
    *(valid("'data.label'", f"[{text!r}, 'b']") for text in MARKUP),
    unknown("'optim.learning_rate'", "[0.3, 0.1 + 0.2]"),
    unknown("'optim.learning_rate'", "[1, 1.0]"),
    unknown("'optim.learning_rate'", "[1e-3, 1e-3]"),
    unknown("'seed'", "[10**12, 2**63 - 1]"),
    unknown("'model.depth'", "[1, 10**12]"),
    unknown("'data.label'", r"['\udc80', 'b']"),
    unknown("'data.label'", "['x' * 10**5]"),
    nonsense("'optim.learning_rate'", "[float('nan')]"),
    nonsense("'optim.learning_rate'", "[float('inf')]"),
    nonsense("'optim.learning_rate'", "[-1.0]"),
    nonsense("'optim.learning_rate'", "['fast']"),
    nonsense("'optim.learning_rate'", "[True]"),
    nonsense("'optim.learning_rate'", "[None]"),
    nonsense("'optim.learning_rate'", "[[1e-3]]"),
    nonsense("'optim.learning_rate'", "[{}]"),
    nonsense("'optim.learning_rate'", "[]"),
    nonsense("'optim.learning_rate'", "3"),
    nonsense("'optim.clip_norm'", "[0.0]"),
    nonsense("'train.steps'", "[1.5]"),
    nonsense("'train.steps'", "[0]"),
    nonsense("'train.steps'", "[True]"),
    nonsense("'train.steps'", "[1, 0]"),
    nonsense("'seed'", "[2**63]"),
    nonsense("'seed'", "[-1]"),
    nonsense("'model.pattern'", "['lsmt']"),
    nonsense("'model.pattern'", "['lstm', '[/x]']"),
    nonsense("'model.tied'", "[1]"),
    nonsense("'model.widht'", "[8]"),
    nonsense("'model'", "[8]"),
    nonsense("'mixers.lstm.form'", "['[/x]']"),
    nonsense("3", "[8]"),
    nonsense("None", "[8]"),
    nonsense("''", "[8]"),
    nonsense("'mixers.swa.window'", "[0]"),
    nonsense("'mixers.swa.num_heads'", "[-1]"),
    nonsense("'mixers.swa.rope_base'", "[float('nan')]"),
    nonsense("'data.length'", "(i for i in iter(int, 1))"),
)
_SPACES = (
    valid("'optim.learning_rate'", "float_range(1e-4, 1e-1, log=True)"),
    valid("'optim.learning_rate'", "choice(1e-3, 1e-2)"),
    valid("'model.pattern'", "choice('lstm', 'gru')"),
    valid("'seed'", "int_range(0, 8)"),
    *(valid("'data.label'", f"choice({text!r}, 'b')") for text in MARKUP[:6]),
    unknown("'optim.learning_rate'", "float_range(1e-320, 1e300, log=True)"),
    unknown("'seed'", "int_range(0, 2**63 - 1)"),
    unknown("'seed'", "int_range(0, 10**30)"),
    unknown("'train.steps'", "int_range(1, 10**12)"),
    unknown("'optim.learning_rate'", "choice(0.3, 0.1 + 0.2)"),
    unknown("'optim.learning_rate'", "float_range(0.1, 0.1 + 1e-17)"),
    nonsense("'optim.learning_rate'", "float_range(1e-1, 1e-4)"),
    nonsense("'optim.learning_rate'", "float_range(float('nan'), 1.0)"),
    nonsense("'optim.learning_rate'", "float_range(0.0, float('inf'))"),
    nonsense("'optim.learning_rate'", "float_range(0.0, 1.0, log=True)"),
    nonsense("'optim.learning_rate'", "float_range('a', 'b')"),
    nonsense("'optim.learning_rate'", "float_range(None, None)"),
    nonsense("'optim.learning_rate'", "float_range(-1.0, 1.0)"),
    nonsense("'train.dropout'", "float_range(0.0, 1.5)"),
    nonsense("'train.dropout'", "choice(0.1, float('nan'))"),
    nonsense("'train.steps'", "int_range(0, 3)"),
    nonsense("'train.steps'", "int_range(1, 9, step=0)"),
    nonsense("'train.steps'", "int_range(1.5, 9)"),
    nonsense("'train.steps'", "float_range(1.0, 9.0)"),
    nonsense("'train.steps'", "choice()"),
    nonsense("'train.steps'", "choice([1, 2])"),
    nonsense("'train.steps'", "choice(1, 1)"),
    nonsense("'model.pattern'", "choice('lstm', 'lsmt')"),
    nonsense("'model.pattern'", "when('model.pattern', ['lstm'], choice('lstm', 'gru'))"),
    nonsense("'seed'", "when('nowhere', 'lstm', int_range(0, 3))"),
    nonsense("'model.widht'", "choice(8, 16)"),
    nonsense("'mixers.swa.window'", "int_range(-3, 3)"),
)
_BODIES = (
    nonsense("sweep", "return None"),
    nonsense("sweep", "return 3"),
    nonsense("sweep", "return [1, 2]"),
    nonsense("sweep", "yield 'model.width'"),
    nonsense("sweep", "yield {1: 2}"),
    nonsense("sweep", "yield {'seed': 1}; raise KeyError"),
    nonsense("sweep", "yield {'seed': 1}; raise RuntimeError('[/x]')"),
    nonsense("sweep", "import sys; sys.exit()"),
    nonsense("sweep", "return sweep()"),
    nonsense("sweep", "return product(axis('seed', [0]), axis('seed', [1]))"),
    nonsense("sweep", "return zip_(axis('seed', [0]), axis('train.steps', [1, 2]))"),
    nonsense("sweep", "return sample(axis('seed', [0]), 9)"),
    nonsense("sweep", "return sample(axis('seed', [0]), -1)"),
    nonsense("sweep", "return product(*(axis(f'data.x{i}', [0, 1]) for i in range(64)))"),
    nonsense("sweep", "return iter(lambda: {'seed': 1}, None)"),
    nonsense("sweep", "return []"),
    nonsense("sweep", "yield"),
    valid("sweep", "yield {}"),
    unknown("sweep", "yield {'seed': 1}; yield {'seed': 1}"),
)
_FOLDERS = (valid("workdir", "{here}/[/x]"), valid("workdir", "{here}/$x$"))
_TEXTS = (*MARKUP, "[/]", "[link=x]", "\x1b[31m", r"\[", "x" * 300, "$$", r"$\undefined$", "_", "^", "\\", "\t")


def _make(rng) -> Case:
    form = rng.choices(("grid", "search", "body", "folder", "page"), (8, 6, 4, 1, 3))[0]
    if form == "body":
        return Case("sweeps", ("grid",), (rng.choice(_BODIES),))
    if form == "folder":
        return Case("sweeps", ("grid",), (valid("'seed'", "[0]"), rng.choice(_FOLDERS)))
    if form == "page":
        return Case("sweeps", ("page",), tuple(valid("data.label", text) for text in rng.sample(_TEXTS, 2)))
    source = _AXES if form == "grid" else _SPACES
    right = [part for part in source if part.verdict == "valid"]
    odd = [part for part in source if part.verdict != "valid"]
    parts = {part.name: part for part in [rng.choice(right), rng.choice(odd if rng.random() < 0.8 else right)]}
    method = "grid" if form == "grid" else rng.choice(("random", "tpe"))
    return Case("sweeps", (method,), tuple(parts.values()))


def _actions(case, here, room) -> list[Action]:
    (method,) = case.frame
    if method == "page":
        return [Action(lambda: _write_page(case, here, room))]
    config = here / "swept.py"
    spaces = "from hybrid_flax.sweep.space import *\n"
    settings = [part for part in case.parts if part.name not in ("workdir", "sweep")]
    bodies = [part.text for part in case.parts if part.name == "sweep"]
    if method == "grid":
        body = f"return product({', '.join(f'axis({part.name}, {part.text})' for part in settings)})"
    else:
        body = f"yield {{{', '.join(f'{part.name}: {part.text}' for part in settings)}}}"
    body = (bodies or [body])[0]
    config.write_text((room / "lm.py").read_text() + f"\n\n{spaces}\ndef sweep():\n    {body}\n", encoding="utf-8")
    words = ["sweep", f"--config={config}", "--dry_run"]
    words += [] if method == "grid" else [f"--search={method}", "--trials=2"]
    folders = [part.text.format(here=here, room=room) for part in case.parts if part.name == "workdir"]
    return [Action(words + [f"--workdir={folder}" for folder in folders])]


def _write_page(case, here, room) -> int:
    """The report of a sweep whose trials are finished, with the case's texts among their values and their reasons."""
    from hybrid_flax.config import load_config
    from hybrid_flax.jobs.queue import Standing
    from hybrid_flax.report.sweep_report import write_sweep_report
    from hybrid_flax.sweep.definition import Sweep
    from hybrid_flax.sweep.tables import write_tables
    from hybrid_flax.tasks.base import find_metric
    from hybrid_flax.tasks.registry import make_task

    base = load_config(str(room / "lm.py"))
    metric = find_metric(make_task(base, ()), "loss")
    texts = [part.text for part in case.parts]
    standings = []
    for number in range(5):
        values = {"data.label": texts[number % len(texts)], "optim.learning_rate": 10.0**-number}
        state, reason = ("failed", texts[0]) if number == 4 else ("done", "")
        standings.append(Standing(number, f"run{number}", values, state, 2, 1.0 + number, reason))
        (here / f"run{number}").mkdir()
        rows = [{"step": step, "eval/loss": 1.0 + number + step} for step in (1, 2)]
        (here / f"run{number}" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tables(standings, here, metric)
    write_sweep_report(Sweep(str(room / "lm.py"), base, metric, "grid", (), None, 5), standings, here)
    return 0


SWEEPS = Strategy(14, _make, _actions)

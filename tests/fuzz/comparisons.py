"""Comparisons: what get_compare() may return: rows, tasks, budgets, learning rates, seeds, and their names."""

from fuzz.case import Case, nonsense, unknown, valid
from fuzz.judge import Action, Strategy
from fuzz.values import MARKUP

__all__ = ["COMPARISONS"]

_FIELDS = {
    "title": (valid, ("'A title'", *(repr(text) for text in MARKUP)), ("3", "None"), ()),
    "rows": (
        valid,
        ("{'gru': {'model.pattern': 'gru'}}", *(f"{{{text!r}: {{'model.pattern': 'gru'}}}}" for text in MARKUP)),
        (
            "{}",
            "[]",
            "None",
            "'gru'",
            "{'x': None}",
            "{'x': 'gru'}",
            "{'x': []}",
            "{3: {}}",
            "{'': {}}",
            "{' ': {}}",
            "{'x': {'model.widht': 3}}",
            "{'x': {'model.width': 3}}",
            "{'x': {'seed': 3}}",
            "{'x': {3: 3}}",
            "{'x': {'model.pattern': 'lsmt'}}",
            "{'x': {'model.pattern': 3}}",
            "{'x': {'model.depth': 0}}",
            "{'x': {'model.pattern': 'gru', 'optim.weight_decay': float('nan')}}",
            "{'x': {'model.pattern': 'gru', 'optim.weight_decay': float('inf')}}",
            "{'x': {'mixers.gru.state_width': -1, 'model.pattern': 'gru'}}",
            "{'x': {'mixers.swa.rope_base': float('nan'), 'model.pattern': 'swa'}}",
        ),
        ("{'x': {'model.depth': 10**12}}", "{'/': {}}", "{'x' * 300: {}}", "{'../x': {}}", r"{'\udc80': {}}"),
    ),
    "budget": (
        valid,
        ("{'parameters': 3000}", "{'flops': 5000}", "{'parameters': 3000.5}"),
        (
            "{}",
            "None",
            "3000",
            "{'parameters': 0}",
            "{'parameters': -1}",
            "{'parameters': float('nan')}",
            "{'parameters': float('inf')}",
            "{'parameters': '3000'}",
            "{'widths': 3}",
            "{'parameters': 1, 'flops': 1}",
            "{'parameters': True}",
            "{'parameters': None}",
            "[3000]",
            "{3: 3}",
            "{'parameters': 1}",
        ),
        ("{'parameters': 10**12}", "{'parameters': 10**30}", "{'flops': 1e300}", "{'parameters': 1e-300}"),
    ),
    "learning_rates": (
        valid,
        ("(1e-3,)", "[1e-3, 1e-2]"),
        (
            "()",
            "None",
            "1e-3",
            "'1e-3'",
            "('a',)",
            "(0.0,)",
            "(-1.0,)",
            "(float('nan'),)",
            "(float('inf'),)",
            "(1e-3, 1e-3)",
            "(None,)",
            "{1e-3}",
            "(True,)",
            "([1e-3],)",
            "(1j,)",
        ),
        ("(10**400,)", "(1e-320,)", "(0.3, 0.1 + 0.2)", "(1, 1.0)"),
    ),
    "seeds": (
        valid,
        ("1", "3"),
        ("0", "-1", "1.5", "'3'", "None", "True", "float('nan')", "[0, 1]", "(0,)"),
        ("10**12", "10**6"),
    ),
    "tasks": (
        valid,
        ("{'text': ComparedTask(config)}", *(f"{{{text!r}: ComparedTask(config)}}" for text in MARKUP)),
        (
            "{}",
            "None",
            "[]",
            "{'text': config}",
            "{'text': None}",
            "{'text': ComparedTask(None)}",
            "{3: ComparedTask(config)}",
            "{'text': ComparedTask({})}",
            "{'text': ComparedTask(config, {})}",
            "{'text': ComparedTask(config, 3)}",
            "{'text': ComparedTask(config, {'parameters': -1})}",
            "{'text': ComparedTask(config, None, {'no': {}})}",
            "{'text': ComparedTask(config, None, [])}",
            "{'': ComparedTask(config)}",
        ),
        ("{'/': ComparedTask(config)}", r"{'\udc80': ComparedTask(config)}"),
    ),
    "body": (
        valid,
        (),
        (
            "return None",
            "return {}",
            "raise KeyError('[/x]')",
            "import sys; sys.exit(0)",
            "return Definition('x', {}, {}, {}, (), 1, 3)",
            "yield",
            "1 / 0",
        ),
        (),
    ),
}
_CHANGES = (
    nonsense("--config", "model.width=8"),
    nonsense("--config", "optim.learning_rate=1"),
    nonsense("--config", "eval.every=0"),
    nonsense("--config", "data.test_fraction=0.0"),
    nonsense("--config", "train.steps=0"),
    nonsense("--config", "optim.b1=nan"),
    valid("--config", "train.steps=3"),
)


def _make(rng) -> Case:
    if rng.random() < 0.12:
        return Case("comparisons", (), (rng.choice(_CHANGES),))
    names = rng.sample(list(_FIELDS), rng.choice((1, 1, 2)))
    parts = []
    for name in names:
        _, right, wrong, odd = _FIELDS[name]
        made, texts = rng.choices(((valid, right), (nonsense, wrong), (unknown, odd)), (3, 6, 1))[0]
        if texts:
            parts.append(made(name, rng.choice(texts)))
    if any(part.name == "body" for part in parts):
        parts = [part for part in parts if part.name == "body"]
    return Case("comparisons", (), tuple(parts))


_BASE = {
    "title": "'A title'",
    "rows": "{'gru': {'model.pattern': 'gru'}}",
    "tasks": "{'text': ComparedTask(config)}",
    "budget": "{'parameters': 3000}",
    "learning_rates": "(1e-3,)",
    "seeds": "1",
}


def _actions(case, here, room) -> list[Action]:
    fields = _BASE | {part.name: part.text for part in case.parts if part.name in _BASE}
    bodies = [part.text for part in case.parts if part.name == "body"]
    definition = ", ".join(f"{name}={text}" for name, text in fields.items())
    source = (room / "lm.py").read_text() + (
        "\n\nfrom hybrid_flax.compare.definition import ComparedTask, Definition\n"
        "def get_compare(arg=''):\n"
        "    config = get_config()\n"
        "    config.eval.every, config.data.test_fraction = 1, 0.2\n"
        f"    {(bodies or [f'return Definition({definition})'])[0]}\n"
    )
    config = here / "compared.py"
    config.write_text(source, encoding="utf-8")
    changes = [f"--config.{part.text}" for part in case.parts if part.name == "--config"]
    return [Action(["compare", f"--config={config}", "--dry_run", f"--workdir={here / 'comparison'}", *changes])]


COMPARISONS = Strategy(12, _make, _actions)

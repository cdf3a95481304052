"""The certificate as a table on the screen, as JSON and as Markdown."""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from hybrid_flax.certify import PROPERTIES, Counterexample, Finding, certify
from hybrid_flax.certify.subjects import forget
from hybrid_flax.console import make_console
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import write_json, write_whole

__all__ = ["certify_mixers"]

_NAME_WIDTH, _CELL_WIDTH = 28, 7
_LEGEND = """each cell: worst relative error (0 = exact)
split   one call = any split into chunks with carried state
packed  documents packed in a row, padding anywhere = each alone
padded  padding in front, behind or within = none
rows    rows of a batch are independent
dirty   contents of padding change nothing, bit for bit
causal  no gradient to the future or to other documents
reach   a gradient to the past, and to the future where it is read
cut     gradients stop at a state from outside
state   shapes and dtypes of the state stay as they are
refuse  what reads the future takes no state
once    equal shapes compile once
bf16    bfloat16 in and out, state in float32, nine tenths of outputs within 10 %
jit     compiled = eager
finite  finite gradients with rows of padding
params  initial parameters are named, float32 and finite
bits    the recurrence alone = any split: states bit for bit, the error of what is read off them
forms   every form = sequential in float64, values and gradients
"""


def certify_mixers(names: Sequence[str], cases: int, seed: int, workdir: str | os.PathLike) -> bool:
    """Run `certify`, print its table, write certificate.json and certificate.md to `workdir`; whether all holds.

    Raises ConfigError in one line for an unknown mixer or fewer cases than one a mixer.
    """
    if cases < 1:
        raise ConfigError(f"--cases={cases} must be at least 1")
    console = make_console(width=max(make_console().width, _NAME_WIDTH + _CELL_WIDTH * len(PROPERTIES)))
    since = time.perf_counter()
    print(_LEGEND)
    print("mixer".ljust(_NAME_WIDTH) + "".join(name.rjust(_CELL_WIDTH) for name in PROPERTIES))
    findings: list[Finding] = []
    try:
        for row in certify(names, cases, seed):
            findings += row
            print(_line(row), flush=True)
            forget()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    failed = _failed(findings)
    seconds = time.perf_counter() - since
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "certificate.json", _record(findings, seed, seconds), indent=1)
    write_whole(folder / "certificate.md", _markdown(findings, seed))
    total = sum(finding.cases for finding in findings)
    mixers = len({finding.mixer for finding in findings})
    print(f"\n{total} cases, {mixers} mixers, {len(failed)} failures, {seconds:.0f} s; {folder}/certificate.md, .json")
    if failed:
        table = Table("mixer", "property", "what", "smallest case", title="failures")
        for finding, found in failed:
            table.add_row(finding.mixer, finding.property, found.message, _given(found))
        console.print(table)
        first, found = failed[0]
        print(f"again: hybrid_flax.certify.prove({first.mixer!r}, {first.property!r}, {_given(found)})")
    return not failed


def _failed(findings: Iterable[Finding]) -> list[tuple[Finding, Counterexample]]:
    return [(finding, finding.counterexample) for finding in findings if finding.counterexample is not None]


def _given(found):
    return ", ".join(f"{key}={value!r}" for key, value in found.arguments.items())


def _line(row):
    by_property = {finding.property: finding for finding in row}
    cells = (_cell(by_property.get(name)) for name in PROPERTIES)
    return row[0].mixer.ljust(_NAME_WIDTH) + "".join(cell.rjust(_CELL_WIDTH) for cell in cells)


def _cell(finding):
    if finding is None:
        return "-"
    if finding.counterexample is not None:
        return "FAIL"
    return "0" if finding.worst == 0.0 else f"{finding.worst:.0e}".replace("e-0", "e-")


def _markdown(findings: Iterable[Finding], seed: int) -> str:
    rows: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        rows.setdefault(finding.mixer, {})[finding.property] = finding
    lines = [
        f"Worst relative error (cases), seed {seed}, jax {jax.__version__} on {jax.default_backend()}.",
        "",
        "| mixer | " + " | ".join(PROPERTIES) + " |",
        "|---" * (len(PROPERTIES) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = (f"{_cell(row[key])} ({row[key].cases})" if key in row else "" for key in PROPERTIES)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines.append("")
    for finding, found in _failed(findings):
        lines.append(f"* `{finding.mixer}` {finding.property}: {found.message}; {found.arguments}")
    return "\n".join(lines).rstrip() + "\n"


def _record(findings, seed, seconds) -> dict[str, Any]:
    def entry(finding):
        found = finding.counterexample
        return finding._asdict() | ({"counterexample": found._asdict(), "worst": None} if found else {})

    about = {"jax": jax.__version__, "python": platform.python_version(), "backend": jax.default_backend()}
    return {**about, "seed": seed, "seconds": round(seconds, 1), "findings": [entry(finding) for finding in findings]}

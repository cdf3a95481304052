"""Run folders that were damaged while nobody looked: cut off, a bit flipped, deleted, of another shape, renamed.

Right is one line of error, or what the undamaged folder gives. Another outcome must be told by a line of its own, and
nothing of it may come from flipped bytes: figures, texts and parameters are compared with those of the sound folder.
"""

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

from fuzz.case import Case, unknown
from fuzz.judge import Action, Strategy, captured

from hybrid_flax.cli import main

__all__ = ["RUN_FOLDERS"]

_FILES = ("config.json", "run.json", "tokenizer.json", "labels.json", "metrics.jsonl", "perf.jsonl", "results.json")
_SHAPES = ("null", "[]", "{}", "3", '"x"', "[[]]", '{"x": 1}', '{"step": null}', "[1, 2]", "NaN", '{"format": "x"}', "")
_HARM = ("cut", "empty", "delete", "zeros", "not utf-8", "shape", "folder", "pipe")
_HARM_OF_ARRAYS = ("flip", "flip", "flip", "cut", "empty", "delete", "zeros")
_VERBS = {
    "finished": ("train", "eval", "generate", "load_run", "diff", "reproduce", "diagnose"),
    "stopped": ("train", "train", "eval", "load_run", "diff"),
    "labelled": ("predict", "load_run", "train", "eval"),
}
_TOLD = re.compile(r"damaged|cannot be read|unreadable|checksum|not whole|skipp|left out|broken|does not fit|going back")


def _make(rng) -> Case:
    run = rng.choice(("finished", "stopped", "stopped", "labelled"))
    verb = rng.choice(_VERBS[run])
    if rng.random() < 0.55:
        harm = rng.choice(_HARM_OF_ARRAYS)
        part = unknown("checkpoints", f"{harm} {rng.choice(('latest', 'any'))} {rng.randrange(10**6)}")
        if rng.random() < 0.1:
            part = unknown("checkpoints", rng.choice(("rename latest 0", "remove all 0", "file all 0", "junk all 0")))
    else:
        part = unknown(rng.choice(_FILES), f"{rng.choice(_HARM)} {rng.randrange(10**6)}")
    return Case("run_folders", (run, verb), (part,))


def _actions(case, here, room) -> list[Action]:
    run, verb = case.frame
    folder = here / "run"
    shutil.copytree(room / "runs" / run, folder)
    for part in case.parts:
        words = [*part.text.split(), "0", "0"]
        if part.name == "checkpoints":
            _harm_checkpoints(folder / "checkpoints", *words[:3])
        else:
            _harm(folder / part.name, words[0], random.Random(words[1]))
    sound = _expected(room, run, verb)
    act = lambda: _act(verb, run, folder, room)  # noqa: E731

    def check(code: int, output: str) -> str:
        said = _plain(output, folder)
        new = [line for line in said if line not in sound]
        if said == sound or any(_TOLD.search(line) for line in new):
            return ""
        part = case.parts[0]
        return f"{part.name}, {part.text.split()[0]}, {verb}: no word"

    return [Action(act, check)]


def _act(verb: str, run: str, folder: Path, room: Path) -> int:
    """The verb on a folder, with all that it computed printed in lines that do not depend on the clock."""
    if verb == "load_run":
        return _print_params(folder)
    config = room / ("labelled.py" if run == "labelled" else "stopped.py")
    words = {
        "train": [f"--config={config}", f"--workdir={folder}"],
        "eval": [f"--workdir={folder}"],
        "diagnose": [f"--workdir={folder}"],
        "generate": [f"--workdir={folder}", "--tokens=4", "--temperature=0"],
        "predict": [f"--workdir={folder}", "--text=a good film"],
        "diff": [str(room / "runs" / "finished"), str(folder)],
        "reproduce": [str(folder)],
    }
    code = main([verb, *words[verb]])
    if verb == "train" and code == 0:
        for name in ("metrics.jsonl", "results.json"):
            print(f"{name}: {hashlib.sha256((folder / name).read_bytes()).hexdigest()}")
        _print_params(folder)
    return code


def _print_params(folder: Path) -> int:
    """The step and a hash of the parameters that a run is loaded with."""
    import sys

    import jax

    from hybrid_flax.errors import ConfigError
    from hybrid_flax.runs import load_run

    try:
        run = load_run(folder)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    leaves = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(run.params)))
    texts = run.tokenizer.to_dict(), run.labels, run.config.to_dict()
    print(f"step {run.step}: {hashlib.sha256(leaves).hexdigest()} {hashlib.sha256(repr(texts).encode()).hexdigest()}")
    return 0


_EXPECTED: dict[tuple[str, str, str], list[str]] = {}


def _expected(room: Path, run: str, verb: str) -> list[str]:
    """What the sound folder gives."""
    key = (str(room), run, verb)
    if key not in _EXPECTED:
        folder = room / f"sound-{run}-{verb}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(room / "runs" / run, folder)
        with captured() as text:
            assert _act(verb, run, folder, room) == 0, text()
            _EXPECTED[key] = _plain(text(), folder)
        shutil.rmtree(folder)
    return _EXPECTED[key]


def _plain(output: str, folder: Path) -> list[str]:
    """Its lines, but for numbers of the clock and drawings; the folder is RUN."""
    lines = (re.sub(r"\s+", " ", line.replace(str(folder), "RUN")).strip() for line in output.splitlines())
    return [line for line in lines if line and not re.search(r"tok/s|\bETA\b", line)]


def _harm_checkpoints(folder: Path, harm: str, which: str, seed: str) -> None:
    rng = random.Random(seed)
    steps = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    if harm == "rename":
        steps[-1].rename(folder / str(int(steps[-1].name) + 1))
    elif harm == "remove":
        shutil.rmtree(folder)
    elif harm == "file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif harm == "junk":
        (folder / "junk").write_text("x")
        (folder / "12x").mkdir()
        (folder / "999").mkdir()
    else:
        chosen = steps[-1] if which == "latest" else rng.choice(steps)
        files = sorted(path for path in chosen.rglob("*") if path.is_file())
        _harm(rng.choice(files), harm, rng)


def _harm(path: Path, harm: str, rng: random.Random) -> None:
    """Damage one file, if it is there."""
    if not path.is_file():
        return
    data = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    elif harm in ("folder", "pipe"):
        path.unlink()
        if harm == "folder":
            path.mkdir()
        else:
            import os

            os.mkfifo(path)
    elif harm == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[: rng.randrange(len(data) or 1)])
    elif harm == "zeros":
        path.write_bytes(bytes(len(data)))
    elif harm == "not utf-8":
        path.write_bytes(b"\xff\xfe" + bytes(data))
    elif harm == "shape":
        shape = rng.choice(_SHAPES)
        path.write_text(shape + "\n" + json.dumps({"step": 1}) + "\n" if path.suffix == ".jsonl" else shape)
    else:
        path.write_bytes(b"")


RUN_FOLDERS = Strategy(14, _make, _actions)

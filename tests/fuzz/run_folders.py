"""Run folders that were damaged while nobody looked: cut off, a bit flipped, deleted, of another shape, renamed.

Right is one line of error, or what the undamaged folder gives. Another outcome must be told by a line of its own, and
nothing of it may come from flipped bytes: figures, texts and parameters are compared with those of the sound folder.
"""

import contextlib
import gc
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

from fuzz.case import Case, unknown
from fuzz.judge import Action, Strategy, captured

from hybrid_flax.cli import main

__all__ = ["EXPERIMENTS", "RUN_FOLDERS", "write_sound"]

EXPERIMENTS = {"finished": "stopped.py", "stopped": "stopped.py", "labelled": "labelled.py"}  # by run
SOUND = "sound.json"

_FILES = ("config.json", "run.json", "tokenizer.json", "labels.json", "metrics.jsonl", "perf.jsonl", "results.json")
_SHAPES = ("null", "[]", "{}", "3", '"x"', "[[]]", '{"x": 1}', '{"step": null}', "[1, 2]", "NaN", '{"format": "x"}', "")
_HARM = ("cut", "empty", "delete", "zeros", "not utf-8", "shape", "folder", "pipe")
_HARM_OF_ARRAYS = ("flip", "flip", "flip", "cut", "empty", "delete", "zeros")
_VERBS = {
    "finished": ("train", "eval", "generate", "load_run", "diff", "reproduce", "diagnose"),
    "stopped": ("train", "train", "eval", "load_run", "diff"),
    "labelled": ("predict", "load_run", "train", "eval"),
}
_TOLD = re.compile(
    r"damaged|cannot be read|unreadable|checksum|not whole|skipp|left out|broken|does not fit|going back|has no"
)


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
    shutil.copytree(room / "runs" / run, here / "run")
    for part in case.parts:
        words = [*part.text.split(), "0", "0"]
        if part.name == "checkpoints":
            _harm_checkpoints(here / "run" / "checkpoints", *words[:3])
        else:
            _harm(here / "run" / part.name, words[0], random.Random(words[1]))
    sound = json.loads((room / SOUND).read_text())[f"{run} {verb}"]

    def check(code: int, output: str) -> str:
        said = _plain(output)
        figures = -3 if verb == "train" else 0  # training says more where it has more to do: what it wrote counts
        if said[figures:] == sound[figures:] or any(_TOLD.search(line) for line in said if line not in sound):
            return ""
        part = case.parts[0]
        if (verb, part.name, part.text.split()[0]) in _UNFINISHED:
            return ""  # as of a run that was cut off there, with a torn line at the end
        return f"{part.name} {part.text.split()[0]}, {verb}: not a word"

    return [Action(lambda: _act(verb, run, room), check)]


# Harm that makes of a run one that is not finished, which `diff` takes too.
_UNFINISHED = {("diff", "metrics.jsonl", "cut"), ("diff", "metrics.jsonl", "not"), ("diff", "results.json", "delete")}


def write_sound(room: Path) -> None:
    """Note what every verb says of the folders that nobody damaged."""
    said = {}
    for run, verbs in _VERBS.items():
        for verb in {*verbs}:
            with tempfile.TemporaryDirectory(dir=room) as folder, contextlib.chdir(folder), captured() as text:
                shutil.copytree(room / "runs" / run, "run")
                assert _act(verb, run, room) == 0, text()
                said[f"{run} {verb}"] = _plain(text())
    (room / SOUND).write_text(json.dumps(said))


def _act(verb: str, run: str, room: Path) -> int:
    """The verb on the folder `run` of this directory; after training, hashes of all that it wrote as well."""
    folder = Path("run")
    words = {
        "train": [f"--config={room / EXPERIMENTS[run]}", f"--workdir={folder}"],
        "eval": [f"--workdir={folder}"],
        "diagnose": [f"--workdir={folder}"],
        "generate": [f"--workdir={folder}", "--tokens=4", "--temperature=0"],
        "predict": [f"--workdir={folder}", "--text=a good film"],
        "diff": [str(room / "runs" / "finished"), str(folder)],
        "reproduce": [str(folder), f"--config={room / EXPERIMENTS[run]}"],
    }
    code = _print_params(folder) if verb == "load_run" else main([verb, *words[verb]])
    if verb == "train" and code == 0:
        for name in ("metrics.jsonl", "results.json"):
            print(f"{name}: {hashlib.sha256((folder / name).read_bytes()).hexdigest()}")
        _print_params(folder)
    gc.collect()  # what a reader of arrays left behind prints its page then
    return code


def _print_params(folder: Path) -> int:
    """The step and a hash of the parameters that a run is loaded with."""
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


def _plain(output: str) -> list[str]:
    """Its lines, but for those with a speed or a time, which are never the same."""
    lines = (" ".join(line.split()) for line in output.splitlines())
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

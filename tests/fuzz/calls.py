"""Command lines: verbs, flags, their values, and what files and folders they name."""

import os

from fuzz.case import Case, Part, nonsense, unknown
from fuzz.judge import Action, Strategy

__all__ = ["CALLS"]

_RUN = "--workdir={room}/runs/finished"
_LABELLED = "--workdir={room}/runs/labelled"
_CONFIG = "--config={room}/lm.py"
# (words that are right, words of which each makes the call nonsense, words of which nothing is known)
_CALLS: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("generate", _RUN, "--tokens=2"): (
        (
            "--temperature=nan",
            "--temperature=-1",
            "--temperature=inf",
            "--temperature=",
            "--temperature=hot",
            "--top_p=0",
            "--top_p=1.5",
            "--top_p=nan",
            "--top_p=-1",
            "--top_k=-1",
            "--top_k=1.5",
            "--top_k=nan",
            "--seed=-1",
            "--seed=1.5",
            "--seed=9223372036854775808",
            "--checkpoint=first",
            "--checkpoint=",
            "--tokens=-1",
            "--config.model.width=8",
            "--split=test",
            "--workdir={room}/runs/labelled",
        ),
        (
            "--prompt=",
            "--prompt=§",
            "--prompt=日本",
            "--prompt=[/x]",
            "--top_k=1000000000000",
            "--temperature=1e-320",
            "--temperature=1e300",
            "--top_p=1e-320",
            "--prompt=\udc80",
            "--prompt=a\x00",
            "--seed=9223372036854775807",
        ),
    ),
    ("eval", _RUN): (
        (
            "--split=tset",
            "--split=",
            "--split=test",
            "--checkpoint=9",
            "--num_processes=2",
            "--process_id=0",
            "--coordinator=localhost",
            "--coordinator=:1",
            "--coordinator=localhost:0",
            "--coordinator=localhost:x",
            "--coordinator=http://x:1",
            "--config=x.py",
        ),
        ("--split=train", "--checkpoint=best"),
    ),
    ("predict", _LABELLED): (
        (
            "--text=",
            "--text= ",
            "--input=nowhere",
            "--input=",
            "--input=/dev/null",
            "--input={here}",
            "--input={here}/pipe",
            "--text=a --input=b",
            "--checkpoint=none",
        ),
        ("--text=[/x]", "--text=\x00", "--text=日本語", "--text=\udc80"),
    ),
    ("diagnose", _RUN): (("--split=x", "--checkpoint=x", "--tokens=3"), ()),
    ("plan", _CONFIG): (
        ("--width=8", "--length=8", "--workdir=x", "--mixers=lstm", "--jobs=2", "word", "--config.model.width=0"),
        (
            "--config.model.depth=1000000000000",
            "--config.train.steps=1000000000000",
            "--config.model.width=1000000000000",
        ),
    ),
    ("plan", "--mixers=lstm"): (
        (
            "--width=0",
            "--width=-1",
            "--width=1.5",
            "--width=nan",
            "--length=0",
            "--length=x",
            "--config.model.width=8",
            "--workdir={room}/text.txt",
        ),
        ("--width=1000000000000", "--length=1000000000000", "--width=1000000", "--length=100000000"),
    ),
    ("train", _CONFIG, "--config.train.steps=1"): (
        (
            "--workdir={room}/text.txt",
            "--workdir=",
            "--workdir= ",
            "--workdir=gs://bucket/x",
            "--workdir=s3://bucket/x",
            "--workdir=/dev/null",
            "--workdir=/proc/x",
            "--num_processes=2",
            "--process_id=-1",
            "--coordinator=x",
            "--jobs=3",
            "--workdir={here}/loop",
            "--workdir={room}/runs/labelled",
            "--steps=3",
            "--config.train.steps=2",
        ),
        ("--workdir={here}/[/x]", "--workdir={here}/a\nb", "--workdir={here}/é"),
    ),
    ("train",): (
        (
            "--config={here}",
            "--config=/dev/zero",
            "--config=/dev/null",
            "--config={here}/pipe",
            "--config=nowhere.py",
            "--config=",
            "--config={room}/text.txt",
            "--config={here}/latin.py",
            "--config={here}/broken.py",
            "--config={here}/exit.py",
            "--config={here}/nul.py",
            "--config={here}/loop",
            "--config={here}/none.py",
            "--config={here}/saved.json",
            "--config={here}/list.json",
            "--config={here}/forever.py:",
            "--config=[/x].py",
            "--config={here}/deep.py",
            "--config={here}/interrupt.py",
            "--config={here}/args.py:x",
        ),
        (),
    ),
    ("preview", _CONFIG): (("--split=x", "--config.data.path=nowhere", "words", "--help=3", "--version"), ()),
    ("sweep", _CONFIG, "--dry_run"): (
        (
            "--search=all",
            "--trials=0",
            "--trials=-1",
            "--executor=ssh",
            "--pruner=x",
            "--jobs=0",
            "--jobs=-1",
            "--seed=3",
            "--storage=sqlite://x",
            "--storage=postgresql://",
            "--slurm=x",
            "--sweep=,",
            "--sweep=none",
            "--search=tpe",
        ),
        ("--jobs=1000000000000",),
    ),
    ("compare", _CONFIG, "--dry_run"): (("--jobs=0", "--jobs=x", "--executor=x", "--config=", "--storage=x"), ()),
    ("diff", "{room}/runs/finished"): (
        ("{room}/text.txt", "nowhere", "", " ", "{here}", "{here}/loop", "{room}/runs/labelled x"),
        ("{room}/runs/labelled", "{room}/runs/finished"),
    ),
    ("reproduce",): (("{here}", "{room}/text.txt", "nowhere", "", "a b", "--run"), ("{room}/runs/finished",)),
    ("certify",): (
        ("--mixers=lsmt", "--mixers=", "--mixers=,", "--cases=0", "--cases=x --mixers=lstm", "--seed=-1", "--width=3"),
        (),
    ),
    ("new",): (
        ("{room}/text.txt", "{here}/x/y.py", "{here}", "my.py --from=none", "--from=shakespeare", "a b", "my.txt"),
        ("my.py", "[x].py"),
    ),
    ("help",): (("nothing", "a b", "[/x]"), ("train", "sweep")),
}
_FILES = {
    "latin.py": b"# caf\xe9\ndef get_config(arg=''):\n    return 3\n",
    "broken.py": b"def get_config(:\n",
    "exit.py": b"import sys\nsys.exit(0)\n",
    "interrupt.py": b"raise SystemExit\n",
    "nul.py": b"x = 1\x00\n",
    "none.py": b"def get_config(arg=''):\n    return None\n",
    "args.py": b"def get_config():\n    return 3\n",
    "deep.py": b"def get_config(arg=''):\n    return get_config()\n",
    "saved.json": b"{}",
    "list.json": b"[]",
    "forever.py": b"def get_config(arg=''):\n    raise ValueError('a\\nb')\n",
}


def _make(rng) -> Case:
    frame = rng.choice(list(_CALLS))
    wrong, odd = _CALLS[frame]
    form = rng.randrange(10)
    if form == 0:
        return Case("calls", frame[:1], (_spoilt_verb(rng, frame[0]),))
    flags = [word for word in frame if word.startswith("--") and not word.startswith("--config.")]
    if form == 1 and flags:
        return Case("calls", frame, (nonsense("again", rng.choice(flags)),))
    if form == 2:
        word = rng.choice(
            (
                "--frobnicate=1",
                "-x",
                "---",
                "--",
                "--=",
                "--config.=1",
                "--config.a.b",
                "--Workdir=x",
                "--é=1",
                "=",
                "\x00",
                "[/x]",
            )
        )
        return Case("calls", frame, (unknown("flag", word) if word == "--" else nonsense("flag", word),))
    if odd and form < 5:
        return Case("calls", frame, (unknown("flag", rng.choice(odd)),))
    return Case("calls", frame, (nonsense("flag", rng.choice(wrong)),))


def _spoilt_verb(rng, verb: str) -> Part:
    return nonsense(
        "verb", rng.choice((verb[:-1], verb.upper(), verb + "x", "", " ", "[/x]", "日本", "train train", "\x00"))
    )


def _actions(case, here, room) -> list[Action]:
    for name, content in _FILES.items():
        (here / name).write_bytes(content)
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    words = list(case.frame)
    for part in case.parts:
        text = part.text.replace("{room}", "ROOM").replace("{here}", "HERE")
        more = text.split(" --") if " --" in text else [text]
        more = more[:1] + [f"--{word}" for word in more[1:]]
        if part.name == "verb":
            words = more
        else:
            words += more if "--" in text or text in ("a", "") or " " not in text.strip() else text.split()
    fill = lambda word: word.replace("ROOM", str(room)).replace("HERE", str(here)).replace("{room}", str(room))  # noqa: E731
    return [Action([fill(word) for word in words])]


CALLS = Strategy(10, _make, _actions)

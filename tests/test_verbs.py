"""The verbs and their flags: every wrong call is one line that says what would be right, and help shows them all."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.errors import ConfigError
from hybrid_flax.flags import parse
from hybrid_flax.verbs import VERBS

# What each verb takes, written down a second time, with a value that each flag can have.
PROCESSES = {"coordinator": "localhost:1234", "num_processes": "2", "process_id": "1"}
QUEUE = {"jobs": "2", "executor": "slurm", "slurm": "partition=gpu", "storage": "postgresql://me@here/study"}
QUEUE |= {"pruner": "median", "dry_run": None}
RUN, CONFIG = {"workdir": "runs/RUN"}, {"config": "experiments/shakespeare.py:gate:lstm+attn"}
CHECKPOINT = {"checkpoint": "best"}
TRUST = {"trust": None}
FLAGS = {
    "train": {**CONFIG, "workdir": "runs/RUN", "changed_data": None, "changed_schedule": None, **TRUST, **PROCESSES},
    "eval": {**RUN, "split": "test", **CHECKPOINT, **CONFIG, **TRUST, **PROCESSES},
    "diagnose": {**RUN, "split": "train", **CHECKPOINT, **CONFIG, **TRUST},
    "generate": {
        **RUN,
        **CHECKPOINT,
        "prompt": "\n",
        "tokens": "1e3",
        "temperature": "0",
        "top_k": "0",
        "top_p": "1.0",
        "seed": "7",
        **CONFIG,
        **TRUST,
    },
    "predict": {**RUN, **CHECKPOINT, "text": "a = b", "input": "-", **CONFIG, **TRUST},
    "plan": {**CONFIG, "mixers": "lstm,attn", "width": "64", "length": "1_024", "workdir": "costs", **TRUST},
    "preview": {**CONFIG, **TRUST},
    "compare": {**CONFIG, "workdir": "compared", **QUEUE},
    "sweep": {**CONFIG, "workdir": "swept", "sweep": "a,b", "search": "tpe", "trials": "9", "seed": "0", **QUEUE},
    "diff": {},
    "reproduce": {"run": None, "workdir": "again", **CONFIG, **TRUST},
    "export": {**CHECKPOINT, **CONFIG, **TRUST},
    "import": {**CONFIG, **TRUST},
    "certify": {"mixers": "lstm", "cases": "40", "seed": "1", "workdir": "proofs", **CONFIG},
    "new": {"from": "griffin"},
}
WORDS = {"diff": ["runs/ONE", "runs/OTHER"], "reproduce": ["runs/ONE"]}
WORDS |= {"export": ["runs/ONE", "exported"], "import": ["exported", "runs/ONE"]}
KNOBS = {"train", "plan", "preview", "compare", "sweep"}  # take --config.NAME=VALUE
ALL_FLAGS = {name: value for flags in FLAGS.values() for name, value in flags.items()}
PAIRS = [(verb, flag) for verb, flags in FLAGS.items() for flag in flags]


def written(name: str, value: str | None) -> str:
    """The flag as a word of the command line."""
    return f"--{name}" if value is None else f"--{name}={value}"


def takers(flag: str) -> list[str]:
    """The verbs that take a flag."""
    return [verb for verb, flags in FLAGS.items() if flag in flags]


def foreign():
    """Every flag at every verb that does not take it: the answer has a knob, the verbs that do, or the reason."""
    knobs = {"seed": "seed", "width": "model.width", "length": "data.length"}
    knobs |= {name: f"sample.{name}" for name in ("prompt", "tokens", "temperature", "top_k", "top_p")}
    for verb, flags in FLAGS.items():
        for flag in sorted(ALL_FLAGS.keys() - flags.keys()):
            word = written(flag, ALL_FLAGS[flag])
            if verb in KNOBS and flag in knobs:
                remedy = f"write --config.{knobs[flag]}={ALL_FLAGS[flag].strip()}"
            elif flag == "config":
                remedy = "change values in the file" if verb == "new" else "a run has its own config"
            elif (verb, flag) == ("train", "dry_run"):
                remedy = "`plan` shows"
            else:
                remedy = takers(flag)[-1]
            yield [verb, word], f"{verb} takes no --{flag}: ", remedy


def misspelt():
    """A letter twice, a letter less, a hyphen for the underscore."""
    for verb, flag in PAIRS:
        for wrong in (flag + flag[-1], flag[:1] + flag[2:]):
            yield [verb, f"--{wrong}=1"], f"unknown flag --{wrong} of {verb}", f"--{flag}"
        if "_" in flag:
            yield (
                [verb, f"--{flag.replace('_', '-')}"],
                f"{verb} takes no --{flag.replace('_', '-')}",
                f"write --{flag}",
            )


def without_value():
    for verb, flag in PAIRS:
        if ALL_FLAGS[flag] is None:
            yield [verb, f"--{flag}=yes"], f"--{flag} takes no value", "leave out =yes"
        else:
            yield [verb, f"--{flag}="], f"--{flag}= is empty", f"write --{flag}="
            yield [verb, f"--{flag}", ""], f"--{flag}= is empty", f"write --{flag}="
            yield [verb, f"--{flag}"], f"--{flag} has no value", f"write --{flag}="
            yield [verb, f"--{flag}", "--config.seed=1"], f"--{flag} has no value", f"write --{flag}="


def doubled():
    for verb, flag in PAIRS:
        word = written(flag, ALL_FLAGS[flag])
        yield [verb, word, word], f"--{flag} is given twice", ""


LEAST = {"num_processes": 1, "process_id": 0, "tokens": 0, "top_k": 0, "seed": 0, "width": 1, "length": 1, "jobs": 1}
LEAST |= {"trials": 1, "cases": 1}
CHOICES = {"split": "train, valid, test", "checkpoint": "latest, best", "search": "grid, random, tpe"}
CHOICES |= {"executor": "local, lanes, slurm", "pruner": "none, median, halving, hyperband"}


def wrong_values():
    for verb, flag in PAIRS:
        if flag in LEAST:
            for text in ("two", "1.5", "1.5e0", "nan", "0x10", "1e", "²"):
                yield [verb, f"--{flag}={text}"], f"--{flag}={text} is no whole number", ""
            yield [verb, f"--{flag}={LEAST[flag] - 1}"], f"={LEAST[flag] - 1} must be at least {LEAST[flag]}", flag
        if flag in CHOICES:
            yield [verb, f"--{flag}=x"], f"--{flag}=x is none of {CHOICES[flag]}", ""
            last = CHOICES[flag].split(", ")[-1]
            yield [verb, f"--{flag}={last[0]}{last}"], f"is none of {CHOICES[flag]}", f"nearest: {last}"
        if flag == "seed":
            yield [verb, f"--seed={2**63}"], "must be below 9223372036854775808", "--seed"
        if flag in ("mixers", "sweep"):
            for text in (",", "a,", ",a", "a,,b", "a, ,b"):
                yield [verb, f"--{flag}={text}"], f"--{flag}={text} has an empty name", ""
        if flag in ("workdir", "config", "input", "slurm", "from"):
            yield [verb, f"--{flag}= "], f"--{flag}= is blank", ""
    for text in ("hot", "-0.1", "nan", "inf", "1e999"):
        yield ["generate", f"--temperature={text}"], f"--temperature={text} ", "number" if text == "hot" else "finite"
    for text in ("much", "0", "1.01", "-1", "nan"):
        yield ["generate", f"--top_p={text}"], f"--top_p={text} ", "number" if text == "much" else "in (0, 1]"
    for text in ("journal", "mysql://me@here/study", "postgresql:/me", "postgresql://"):
        yield ["sweep", f"--storage={text}"], f"--storage={text} is no postgresql://", "journal file"
    for text in ("localhost", ":1234", " :1234", "http://localhost:1234", "localhost:12:34"):
        yield ["train", f"--coordinator={text}"], f"--coordinator={text} is no HOST:PORT", "localhost:1234"
    for port in ("", "0", "65536", "-1", "http", "1234567890123", "12 ", "²"):
        yield ["eval", f"--coordinator=here:{port}"], f"has port '{port}'", "from 1 to 65535"


PLANNED, SWEEP = ["plan", "--mixers=lstm"], ["sweep", "--config=experiments/shakespeare.py"]
EVAL = ["eval", "--workdir=runs/RUN"]
COMBINED = [
    ([], "no --config given", "experiments here: experiments/attention_only.py"),
    (["train"], "no --config given", "experiments/shakespeare.py"),
    (["--workdir=runs/RUN"], "no --config given", "experiments/shakespeare.py"),
    (["preview", "--config.seed=1"], "no --config given", "experiments here: "),
    (["compare"], "no --config given", "experiments here: "),
    (["sweep", "--dry_run"], "no --config given", "experiments here: "),
    *(([verb], "no --workdir given", "runs here: none") for verb in ("eval", "diagnose", "generate", "predict")),
    (["trane"], "unknown command 'trane'", "nearest: train"),
    (["help", "sweap"], "unknown command 'sweap'", "nearest: sweep"),
    (["sing"], "unknown command 'sing'", "train"),
    (["", "--config=x.py"], "unknown command ''", "train"),
    (["help", "train", "eval"], "help takes 1 command", "train eval"),
    (["train", "--version"], "unknown flag --version of train", ""),
    (["--config=x.py", "eval"], "unexpected 'eval'", "the command comes first"),
    (["train", "stray"], "not 'stray'", "nothing but flags"),
    (["train", "config=x.py"], "not 'config=x.py'", "write --config=x.py"),
    (["train", "config.seed=1"], "not 'config.seed=1'", "write --config.seed=1"),
    (["train", ""], "not ''", "nothing but flags"),
    (["train", "-workdir=x"], "train takes no -workdir", "write --workdir"),
    (["train", "--"], "unknown flag -- of train", "--config"),
    (["train", "--Config=x"], "unknown flag --Config of train", "nearest: --config"),
    (["train", "--lr=1"], "train takes no --lr", "write --config.optim.learning_rate=1"),
    (["train", "--epochs", "3"], "train takes no --epochs", "write --config.train.steps=VALUE"),
    (["sweep", "--layers=2"], "sweep takes no --layers", "write --config.model.depth=2"),
    (["eval", "--lr=1"], "unknown flag --lr of eval", "--workdir"),
    (["train", "--config.seed"], "--config.seed has no value", "write --config.seed=VALUE"),
    (["train", "--config.seed", "--config=x.py"], "--config.seed has no value", "write --config.seed=VALUE"),
    (["train", "--config.seed=1", "--config.seed=2"], "--config.seed is given twice", "1 and 2"),
    (["train", "--config.seed=1", "--config.seed", "2"], "--config.seed is given twice", "1 and 2"),
    *(
        ([verb, "--config.model.width=3"], f"{verb} takes no --config.model.width", "a run has its own config")
        for verb in ("eval", "diagnose", "generate", "predict", "diff", "reproduce", "export", "import")
    ),
    (["certify", "--config.model.width=3"], "certify takes no --config.model.width", "certified with their defaults"),
    (["new", "my.py", "--config.model.width=3"], "new takes no --config.model.width", "in the file"),
    *(([*EVAL, written(name, value)], "go together", "add --") for name, value in PROCESSES.items()),
    (["train", "--config=x.py", "--num_processes=2"], "go together", "add --coordinator and --process_id"),
    ([*EVAL, "--coordinator=a:1", "--num_processes=2"], "go together", "add --process_id"),
    ([*EVAL, "--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2", "--num_processes=2"),
    ([*SWEEP, "--slurm=a=b"], "--slurm=a=b goes with --executor=slurm", "not --executor=local"),
    ([*SWEEP, "--slurm=a=b", "--executor=lanes"], "goes with --executor=slurm", "not --executor=lanes"),
    (["compare", "--config=x.py", "--slurm=a=b"], "goes with --executor=slurm", "not --executor=local"),
    ([*SWEEP, "--search=tpe"], "--search=tpe needs --trials=N", ""),
    ([*SWEEP, "--seed=3"], "--seed=3 goes with --search=random", "--search=grid draws nothing"),
    (["plan"], "no --config given", "nor --mixers"),
    (["plan", "--width=3"], "no --config given", "nor --mixers"),
    (["plan", "--config=x.py", "--width=3"], "--width=3 goes with plan --mixers", "not with plan --config"),
    (["plan", "--config=x.py", "--length=3"], "--length=3 goes with plan --mixers", "not with plan --config"),
    (["plan", "--config=x.py", "--workdir=3"], "--workdir=3 goes with plan --mixers", "not with plan --config"),
    *(
        ([verb, "--config=x.py", "--trust"], "--trust goes with", "--config=x.py")
        for verb in ("train", "plan", "preview")
    ),
    ([*PLANNED, "--trust"], "--trust goes with plan --config", ""),
    *(
        ([verb, "--workdir=runs/RUN", "--config=x.py", "--trust"], "--config=x.py or --trust", "not both")
        for verb in ("eval", "generate", "diagnose")
    ),
    ([*PLANNED, "--config=x.py"], "plan takes --config or --mixers, not both", ""),
    ([*PLANNED, "--config.model.width=3"], "plan takes --config or --mixers, not both", ""),
    (["predict", "--workdir=runs/RUN"], "--text=TEXT and --input=FILE", "neither is given"),
    (["predict", "--workdir=runs/RUN", "--text=a", "--input=b"], "--text=TEXT and --input=FILE", "both are given"),
    (["diff"], "diff takes 2 run folders, 0 given", ""),
    (["diff", "one"], "diff takes 2 run folders, 1 given", ""),
    (["diff", "one", "two", "three"], "diff takes 2 run folders, 3 given", ""),
    (["diff", "", "two"], "run folder is empty", "write diff RUN OTHER"),
    (["reproduce"], "reproduce takes 1 run folder, 0 given", ""),
    (["reproduce", "one", "two"], "reproduce takes 1 run folder, 2 given", ""),
    (["export", "runs/RUN"], "export takes 2 folders, 1 given", ""),
    (["import"], "import takes 2 folders, 0 given", ""),
    (["new", "a.py", "b.py"], "new takes at most 1 file, 2 given", ""),
    (["new", "--from=griffin"], "--from=griffin needs a file", "new my.py --from=griffin"),
]

WRONG = {
    "foreign": list(foreign()),
    "misspelt": list(misspelt()),
    "without value": list(without_value()),
    "doubled": list(doubled()),
    "wrong values": list(wrong_values()),
    "combined": COMBINED,
}


def test_there_are_many_wrong_calls():
    assert {name: len(calls) for name, calls in WRONG.items() if len(calls) < 40} == {}
    assert len({tuple(argv) for calls in WRONG.values() for argv, _, _ in calls}) > 800


@pytest.mark.parametrize("group", WRONG)
def test_a_wrong_call_is_one_line(group, capsys, monkeypatch, tmp_path):
    """On stderr, with exit code 2; the verb is never reached."""
    monkeypatch.setattr(cli, "_RUN", {})
    (tmp_path / "experiments").symlink_to(tiny.ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    for argv, what, remedy in WRONG[group]:
        assert cli.main(argv) == 2, argv
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), (argv, err)
        assert what in err and remedy in err, (argv, err)


def test_a_wrong_call_does_not_wait_for_jax():
    calls = [argv for calls in WRONG.values() for argv, _, _ in calls] + [["--help"], ["sweep", "-h"], ["--version"]]
    code = (
        f"import sys; from hybrid_flax import cli\ncli._RUN.clear()\ncodes = [cli.main(argv) for argv in {calls!r}]\n"
        "print({*codes[:-3]}, {*codes[-3:]}, sorted({'jax', 'numpy', 'ml_collections', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "{2} {0} []"


READ = dict.fromkeys(("num_processes", "process_id", "jobs", "top_k", "seed", "width", "trials", "cases"), int)
READ |= {"tokens": lambda text: {"1e3": 1000}[text], "length": lambda text: {"1_024": 1024}[text]}
READ |= {
    "temperature": float,
    "top_p": float,
    **dict.fromkeys(("dry_run", "run", "trust", "changed_data", "changed_schedule"), lambda _: True),
}
READ |= dict.fromkeys(("mixers", "sweep"), lambda text: text.split(","))


def option_values(verb):
    """As many flags of a verb as go together, with a value each."""
    left_out = {"predict": {"text", "config"}, "plan": {"config", "trust"}, "train": set(), "preview": set()}
    left_out = left_out.get(verb, {"config"} if "trust" in FLAGS[verb] else set())
    values = {name: value for name, value in FLAGS[verb].items() if name not in left_out}
    return values | ({"config": "trial.json"} if {"trust", "config"} <= values.keys() else {})


@pytest.mark.parametrize("verb", FLAGS)
def test_a_right_call_keeps_all_that_is_given(verb):
    """In both ways to write a value, and in any place."""
    values = option_values(verb)
    knobs = ["--config.model.width=64", "--config.data.path=a=b.txt"] if verb in KNOBS - {"plan"} else []
    words = ["my.py"] if verb == "new" else WORDS.get(verb, [])
    one = [verb, *words, *knobs, *(written(name, value) for name, value in values.items())]
    other = [verb]
    for name, value in reversed(values.items()):
        other += [f"--{name}"] + ([] if value is None else [value])
    for knob in knobs:
        other += knob.split("=", 1)
    other += words
    for argv in (one, other):
        found, options = parse(VERBS, argv)
        assert found == verb and options.words == words
        assert options.overrides == [text.removeprefix("--config.") for text in knobs]
        assert options.given == values.keys()
        kept = {name: getattr(options, name) for name in values}
        assert kept == {name: READ.get(name, str)(value) for name, value in values.items()}


def test_no_verb_is_train():
    verb, options = parse(VERBS, ["--config=x.py", "--config.seed", "1", "--config.seed=1"])
    assert verb == "train" and options.config == "x.py" and options.overrides == ["seed=1"]
    assert options.workdir is options.coordinator is None and options.given == {"config"}


DEFAULTS = {
    ("train", "workdir"): "runs/CONFIG-HASH",
    ("eval", "split"): "valid",
    ("generate", "seed"): "0",
    ("generate", "top_p"): "as sample.top_p of the run's config says",
    ("plan", "width"): "256",
    ("plan", "length"): "1024",
    ("compare", "executor"): "local",
    ("compare", "workdir"): "runs/CONFIG",
    ("sweep", "search"): "grid",
    ("sweep", "pruner"): "none",
    ("sweep", "dry_run"): "off",
    ("sweep", "workdir"): "runs/sweep-CONFIG",
    ("reproduce", "workdir"): "RUN-again",
    ("certify", "cases"): "2000",
    ("certify", "workdir"): "runs/certificate",
    ("new", "from"): "shakespeare",
}


@pytest.mark.parametrize("verb", FLAGS)
def test_help_of_a_verb(verb, capsys):
    texts = set()
    for argv in (["help", verb], [verb, "--help"], [verb, "-h"], [verb, "--workdir=x", "--help"]):
        assert cli.main(argv) == 0
        out, err = capsys.readouterr()
        assert err == ""
        texts.add(out)
    (text,) = texts
    entries = dict(re.findall(r"^(--[\w.]+)(.*(?:\n .*)*)", text, re.MULTILINE))
    assert {*entries} == {f"--{flag}" for flag in FLAGS[verb]} | ({"--config.NAME"} if verb in KNOBS else set())
    for name, entry in entries.items():
        sentence = " ".join(entry.split())
        assert re.search(r"\b[A-Z][^.]+.*\. \((needed|default: .+)\)$", sentence), (name, sentence)
    for (other, flag), default in DEFAULTS.items():
        if other == verb:
            assert f"(default: {default})" in " ".join(entries[f"--{flag}"].split())
    assert max(map(len, text.splitlines())) <= 120
    example = re.search(rf"^Example: hybrid-flax ({verb} .+)$", text, re.MULTILINE)[1]
    assert parse(VERBS, shlex.split(example))[0] == verb


def test_help_lists_the_verbs(capsys):
    texts = set()
    for argv in (["--help"], ["-h"], ["help"], ["--config=x.py", "--help"]):
        assert cli.main(argv) == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert re.findall(r"^(\w+) +[A-Z].*\.$", text, re.MULTILINE) == [*FLAGS]
    assert "hybrid-flax COMMAND --help" in text
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hybrid_flax {metadata.version('hybrid_flax')}\n"


@pytest.mark.parametrize(
    ("started", "shown"),
    [("launch.py", "python launch.py"), ("a/hybrid-flax", "hybrid-flax"), ("b/__main__.py", "python -m hybrid_flax")],
)
def test_the_program_has_the_name_that_it_was_called_by(started, shown, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started, "new", "--from=griffin"])
    assert cli.run() == 2
    assert f"{shown} new my.py --from=griffin" in capsys.readouterr().err
    scripts = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hybrid-flax": "hybrid_flax.cli:run"}


def commands_of(path):
    """The calls of launch.py in a file, cut where a comment or other text begins."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for call in re.findall(r"launch\.py ([^`\n]+)", text):
        words = shlex.split(call.partition(" #")[0].partition("  #")[0].partition("&&")[0], comments=True)
        if words[0].startswith("--") or words[0] in FLAGS:
            yield [word.rstrip(",;.)") for word in words if word != "\\"]


def test_commands_that_are_written_down_are_right():
    """In the README, the docs and the experiments; what stands in [brackets] may be left out."""
    pages = [tiny.ROOT / "README.md", tiny.ROOT / "CONTRIBUTING.md", *(tiny.ROOT / "docs").glob("*.md")]
    calls = [call for page in [*pages, *(tiny.ROOT / "experiments").glob("*.py")] for call in commands_of(page)]
    assert len(calls) > 40
    for call in calls:
        parse(VERBS, [word for word in call if not word.startswith("[")])


def test_paths_of_the_user_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    _, options = parse(VERBS, ["sweep", "--config=~/x.py:~", "--workdir", "~/s"])
    assert (options.config, options.workdir) == ("/home/me/x.py:~", "/home/me/s")
    assert parse(VERBS, ["predict", "--workdir=a~", "--input=~/t"])[1].input == "/home/me/t"
    assert parse(VERBS, ["diff", "~/a", "b"])[1].words == ["/home/me/a", "b"]


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b", "HTTPS://x/y", "file:///x"])
@pytest.mark.parametrize(
    "words", [["train", "--config=x.py", "--workdir={}"], ["diff", "{}", "b"], ["plan", "--config={}"]]
)
def test_what_is_no_path_of_this_machine_is_refused(path, words):
    with pytest.raises(ConfigError, match=f"{path} is no path|'{path}' is no path") as error:
        parse(VERBS, [word.format(path) for word in words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags", [["--length=1e12"], ["--width=1e12"]])
def test_no_number_is_without_end(flags):
    with pytest.raises(ConfigError, match="must be below 2147483648"):
        parse(VERBS, ["plan", "--mixers=lstm", *flags])

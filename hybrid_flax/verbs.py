"""The verbs of the command line with the flags of each: the table that parsing, refusals and help are made from."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from hybrid_flax.errors import ConfigError
from hybrid_flax.flags import (
    ADDRESS,
    STORAGE,
    TEXT,
    Flag,
    Verb,
    Words,
    command,
    names,
    one_of,
    place,
    real,
    whole,
    word,
)
from hybrid_flax.spelling import ABBREVIATIONS

__all__ = ["VERBS"]


def _experiments_here() -> str:
    return f"experiments here: {_first(Path('experiments').glob('*.py')) or f'none, `{command()} new` writes one'}"


def _runs_here() -> str:
    return f"runs here: {_first(path.parent for path in Path('runs').glob('*/config.json')) or 'none'}"


def _first(paths: Iterable[Path], most: int = 16) -> str:
    found = sorted(map(str, paths))
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


# --- options that do not go together ---


def _check_processes(options: SimpleNamespace) -> None:
    group = ("coordinator", "num_processes", "process_id")
    missing = [f"--{name}" for name in group if name not in options.given]
    if 0 < len(missing) < len(group):
        raise ConfigError(f"--coordinator, --num_processes and --process_id go together: add {' and '.join(missing)}")
    if not missing and options.process_id >= options.num_processes:
        raise ConfigError(
            f"--process_id={options.process_id} must be below --num_processes={options.num_processes}: counted from 0"
        )


def _check_trial(options: SimpleNamespace) -> None:
    if options.trust and not options.config.endswith(".json"):
        raise ConfigError(f"--trust goes with the trial.json of a trial: --config={options.config} is run as it is")


def _check_train(options: SimpleNamespace) -> None:
    _check_processes(options)
    _check_trial(options)


def _check_trust(options: SimpleNamespace) -> None:
    if options.trust and options.config is not None:
        raise ConfigError(f"--config={options.config} or --trust, which runs the file that the folder names: not both")


def _check_eval(options: SimpleNamespace) -> None:
    _check_processes(options)
    _check_trust(options)


def _check_queue(options: SimpleNamespace) -> None:
    if "slurm" in options.given and options.executor != "slurm":
        raise ConfigError(f"--slurm={options.slurm} goes with --executor=slurm, not --executor={options.executor}")


def _check_sweep(options: SimpleNamespace) -> None:
    _check_queue(options)
    if options.search != "grid" and "trials" not in options.given:
        raise ConfigError(f"--search={options.search} needs --trials=N: how many to try")
    if options.search == "grid" and "seed" in options.given:
        raise ConfigError(f"--seed={options.seed} goes with --search=random or tpe: --search=grid draws nothing")


def _check_plan(options: SimpleNamespace) -> None:
    if "mixers" not in options.given:
        if "config" not in options.given:
            raise ConfigError(f"no --config given, nor --mixers=all or names of mixers; {_experiments_here()}")
        for name in sorted(options.given & {"width", "length", "workdir"}):
            raise ConfigError(f"--{name}={getattr(options, name)} goes with plan --mixers, not with plan --config")
        _check_trial(options)
    elif options.trust:
        raise ConfigError("--trust goes with plan --config=trial.json: built-in mixers run nothing of yours")
    elif "config" in options.given or options.overrides:
        raise ConfigError("plan takes --config or --mixers, not both: mixers are planned with their defaults")


def _check_predict(options: SimpleNamespace) -> None:
    count = len(options.given & {"text", "input"})
    if count != 1:
        what = "both are" if count else "neither is"
        raise ConfigError(f"predict takes one of --text=TEXT and --input=FILE (- for stdin): {what} given")
    _check_trust(options)


def _check_new(options: SimpleNamespace) -> None:
    if "from" in options.given and not options.words:
        source = getattr(options, "from")
        raise ConfigError(f"--from={source} needs a file to write: {command()} new my.py --from={source}")


# --- flags of several verbs ---

_FILE, _FOLDER, _COUNT, _SEED = place("FILE"), place("FOLDER"), whole(1), whole(0, 2**63)
_CONFIG = Flag(
    "config", _FILE, "Experiment: FILE.py, FILE.py:ARG or the trial.json of a trial.", needed=_experiments_here
)
_DEFINED = _CONFIG._replace(about="Experiment: FILE.py or FILE.py:ARG.")
_RUN = Flag("workdir", _FOLDER, "Folder of the run.", needed=_runs_here)
_SPLIT = Flag("split", one_of("train", "valid", "test"), "Split of the data.", "valid")
_CHECKPOINT = Flag(
    "checkpoint", one_of("latest", "best"), "Checkpoint to read.", absent="as eval.best of the run's config says"
)
_PROCESSES = (
    Flag("coordinator", ADDRESS, "Address of process 0, for a run of several processes.", absent="one process"),
    Flag("num_processes", _COUNT, "Number of processes of the run.", absent="one process"),
    Flag("process_id", whole(0), "Number of this process, counted from 0.", absent="one process"),
)
_QUEUE = (
    Flag("jobs", _COUNT, "Runs at a time.", absent="as many as GPUs, at least 1; 32 for lanes"),
    Flag(
        "executor",
        one_of("local", "lanes", "slurm"),
        "Train in processes, as lanes of one program, or as SLURM jobs.",
        "local",
    ),
    Flag(
        "slurm",
        word("NAME=VALUE,..."),
        "Parameters of the SLURM jobs, as in partition=gpu,timeout_min=60.",
        absent="none",
    ),
    Flag("storage", STORAGE, "Database that several machines share.", absent="a journal file in the folder"),
    Flag("pruner", one_of("none", "median", "halving", "hyperband"), "Rule that stops hopeless runs.", "none"),
    Flag("dry_run", None, "Show what would train, and train nothing."),
)
# Names of knobs that are taken for flags.
_KNOBS = {
    **{name: f"write --config.{keys[0]}=VALUE" for name, keys in ABBREVIATIONS.items()},
    **{name: f"write --config.sample.{name}=VALUE" for name in ("prompt", "tokens", "temperature", "top_k", "top_p")},
    "seed": "write --config.seed=VALUE",
    "width": "write --config.model.width=VALUE",
    "length": "write --config.data.length=VALUE",
}
_RUN_HAS_CONFIG = {"config": "a run has its own config"}
_TRUST = Flag("trust", None, "Run the experiment file that the folder names: only where you know who wrote it.")
_OWN_PARTS = (
    _CONFIG._replace(
        about="Experiment that registers the run's own parts, such as mixers.", needed=None, absent="none"
    ),
    _TRUST,
)


# --- the table ---

_AS_SAMPLE = "as sample.{} of the run's config says"
_VERBS = (
    Verb(
        "train",
        "Train, or go on with, the run in --workdir; then evaluate and sample it.",
        "--config=experiments/shakespeare.py --config.optim.learning_rate=5e-3",
        (
            _CONFIG,
            Flag("workdir", _FOLDER, "Folder of the run.", absent="runs/CONFIG-HASH"),
            Flag("changed_data", None, "Go on although the data have changed; the run keeps its tokenizer and labels."),
            Flag("changed_schedule", None, "Go on to another train.steps although the learning rate jumps there."),
            _TRUST,
            *_PROCESSES,
        ),
        knobs=True,
        check=_check_train,
        instead=_KNOBS | {"dry_run": "`plan` shows what a config costs before it trains"},
    ),
    Verb(
        "eval",
        "Evaluate a run: loss, perplexity and bits of a language model, scores of labels.",
        "--workdir=runs/RUN --split=test",
        (_RUN, _SPLIT, _CHECKPOINT, *_OWN_PARTS, *_PROCESSES),
        check=_check_eval,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "diagnose",
        "Measure what the parts of a run's fusions do, and its loss without each.",
        "--workdir=runs/RUN",
        (_RUN, _SPLIT, _CHECKPOINT, *_OWN_PARTS),
        check=_check_trust,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "generate",
        "Generate text with a run.",
        "--workdir=runs/RUN --prompt=HAMLET --tokens=500 --temperature=0.7",
        (
            _RUN,
            _CHECKPOINT,
            Flag("prompt", TEXT, "Text to go on from.", absent=_AS_SAMPLE.format("prompt")),
            Flag("tokens", whole(0), "Number of tokens to generate.", absent=_AS_SAMPLE.format("tokens")),
            Flag(
                "temperature",
                real("finite and at least 0", lambda value: value >= 0),
                "Divisor of the logits; 0 takes the likeliest token.",
                absent=_AS_SAMPLE.format("temperature"),
            ),
            Flag("top_k", whole(0), "Choose among the k likeliest tokens; 0: all.", absent=_AS_SAMPLE.format("top_k")),
            Flag(
                "top_p",
                real("in (0, 1]", lambda value: 0 < value <= 1),
                "Choose among the fewest tokens that hold this much probability.",
                absent=_AS_SAMPLE.format("top_p"),
            ),
            Flag("seed", _SEED, "Seed of the draws.", 0),
            *_OWN_PARTS,
        ),
        check=_check_trust,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "predict",
        "Label new texts with a run.",
        '--workdir=runs/RUN --text="a film to fall asleep to"',
        (
            _RUN,
            _CHECKPOINT,
            Flag("text", TEXT, "The text to label.", absent="--input is read"),
            Flag("input", _FILE, "File with a text on each line; - for stdin.", absent="--text is read"),
            *_OWN_PARTS,
        ),
        check=_check_predict,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "plan",
        "Show parameters, FLOPs, state and memory of a config, or of mixers, before anything trains.",
        "--config=experiments/griffin.py",
        (
            _CONFIG._replace(needed=None, absent="--mixers are planned"),
            Flag("mixers", names("all|NAME,..."), "Mixers to plan in place of a config.", absent="--config is planned"),
            Flag("width", _COUNT, "Width of the mixers.", 256),
            Flag("length", _COUNT, "Length of the sequence that mixers read, in tokens.", 1024),
            Flag("workdir", _FOLDER, "Folder for the costs of the mixers, as costs.md.", absent="none is written"),
            _TRUST,
        ),
        knobs=True,
        check=_check_plan,
        instead=_KNOBS,
    ),
    Verb(
        "preview",
        "Show what a model will see: examples of a config as text and tokens, lengths, labels.",
        "--config=experiments/sentiment.py",
        (_CONFIG, _TRUST),
        knobs=True,
        check=_check_trial,
        instead=_KNOBS,
    ),
    Verb(
        "compare",
        "Compare models of one size on tasks, by get_compare() of an experiment; started again it goes on.",
        "--config=experiments/compare_fusion.py:smoke --jobs=2",
        (_DEFINED, Flag("workdir", _FOLDER, "Folder of the comparison.", absent="runs/CONFIG"), *_QUEUE),
        knobs=True,
        check=_check_queue,
        instead=_KNOBS,
    ),
    Verb(
        "sweep",
        "Train every trial of sweep() of an experiment, each a run folder; started again it goes on.",
        "--config=experiments/shakespeare.py --sweep=search --search=tpe --trials=30",
        (
            _DEFINED,
            Flag("workdir", _FOLDER, "Folder of the trials.", absent="runs/sweep-CONFIG"),
            Flag("sweep", names("NAME,..."), "Functions sweep_NAME() of the experiment.", default=(), absent="sweep()"),
            Flag("search", one_of("grid", "random", "tpe"), "How trials are chosen.", "grid"),
            Flag("trials", _COUNT, "Number of trials to search for; of a grid, the first ones.", absent="a whole grid"),
            Flag("seed", _SEED, "Seed of a search that draws.", 0),
            *_QUEUE,
        ),
        knobs=True,
        check=_check_sweep,
        instead=_KNOBS,
    ),
    Verb(
        "diff",
        "Show what differs between the configs of two runs, and their metrics.",
        "runs/RUN runs/OTHER",
        words=Words(2, 2, "RUN OTHER", "run folder"),
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "reproduce",
        "Show the command that makes a run again, from its config and git revision.",
        "runs/RUN --config=experiments/shakespeare.py --run",
        (
            Flag("run", None, "Run the command, too."),
            Flag("workdir", _FOLDER, "Folder to train in.", absent="RUN-again"),
            _CONFIG._replace(about="Experiment of the run.", needed=None, absent="--trust is needed"),
            _TRUST,
        ),
        words=Words(1, 1, "RUN", "run folder"),
        check=_check_trust,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "export",
        "Write the weights of a run, and what goes with them, as a folder for others.",
        "runs/RUN exported/RUN",
        (_CHECKPOINT, *_OWN_PARTS),
        words=Words(2, 2, "RUN FOLDER", "folder"),
        check=_check_trust,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "import",
        "Make a run folder of an exported one: the same weights, to be read and started from.",
        "exported/RUN runs/RUN",
        _OWN_PARTS,
        words=Words(2, 2, "FOLDER RUN", "folder"),
        check=_check_trust,
        instead=_RUN_HAS_CONFIG,
    ),
    Verb(
        "certify",
        "Prove that mixers are right in every form, those that an experiment registers included.",
        "--mixers=lstm,cascade:lstm+attn --cases=200",
        (
            Flag("mixers", names("NAME,..."), "Mixers to prove.", default=(), absent="all that are registered"),
            Flag("cases", _COUNT, "Number of random cases, over all mixers.", 2000),
            Flag("seed", _SEED, "Seed of the cases.", 0),
            Flag("workdir", _FOLDER, "Folder for certificate.json and certificate.md.", "runs/certificate"),
            _CONFIG._replace(about="Experiment that registers mixers.", needed=None, absent="none"),
        ),
        instead={"config": "mixers are certified with their defaults"},
    ),
    Verb(
        "new",
        "Write an experiment file to start from; without a file, list what there is.",
        "my.py --from=shakespeare",
        (Flag("from", word("NAME"), "Experiment of the package to copy.", "shakespeare"),),
        words=Words(0, 1, "[FILE]", "file"),
        check=_check_new,
        instead={"config": "change values in the file that it writes"},
    ),
)
VERBS = {verb.name: verb for verb in _VERBS}

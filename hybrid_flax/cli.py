"""The command line: words to a config, a config to one of the verbs. No logic of its own."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid_flax.config import (
    ConfigError,
    apply_overrides,
    config_hash,
    experiment_name,
    load_config,
    load_module,
)
from hybrid_flax.mixers.registry import mixer_options

__all__ = ["main"]

_USAGE = """python launch.py [VERB] --config=experiments/x.py[:arg] [--config.a.b=value ...]

train     train, or go on with, the run in --workdir (default: runs/<config>-<hash>), then evaluate and sample
eval      loss, perplexity and bits of a run: --workdir [--split=valid|test|train] [--checkpoint=latest|best]
diagnose  what the parts of a run's fusions do, and its loss without each: --workdir [--split] [--checkpoint]
generate  text from a run: --workdir [--prompt] [--tokens] [--temperature] [--top_k] [--top_p] [--seed]
predict   labels of new texts from a run: --workdir --text="..." or --input=FILE (- for stdin), a text a line
plan      parameters, FLOPs, state and memory of a config, before anything trains; without --config, those of
          mixers: --mixers=all|a,b [--width=256] [--length=1024] [--workdir]
preview   what a model will see: examples as text and tokens, lengths, labels of a config
compare   get_compare(arg) of an experiment file: rows of one size on tasks, the same search, several seeds; into
          --workdir (default: runs/<config>): [--jobs=N] cells at a time, [--dry_run] lists them
sweep     train every trial of the sweep() in an experiment file, each a run folder in --workdir (default:
          runs/sweep-<config>); started again it goes on: [--sweep=name,name] [--search=grid|random|tpe] [--trials=N]
          [--jobs=N] [--executor=local|lanes|slurm] [--slurm=partition=gpu,timeout_min=60] [--pruner=none|median|
          halving|hyperband] [--storage=postgresql://...] [--seed] [--dry_run]
diff      two runs: what differs in their configs, and their metrics: RUN RUN
reproduce the command of a run, from its config and git revision: RUN [--run]
certify   prove every mixer, own ones of --config included: [--mixers=a,b] [--cases=2000] [--seed] [--workdir]
"""


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 a mistake in the call, 128 + signal."""
    try:
        options, overrides = _parse(argv)
        return _VERBS[options.verb](options, overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would flush into the pipe
        return 0


def _train(options, overrides) -> int:
    _set_up_jax(options)
    from hybrid_flax.report.finish import finish_run
    from hybrid_flax.train.diagnose import TrainingFailed
    from hybrid_flax.train.loop import train
    from hybrid_flax.train.signals import Interrupted

    config = _config(options, overrides)
    workdir = options.workdir or _default_workdir(options.config, config)
    print(f"run folder: {workdir}", flush=True)
    try:
        run, results = train(config, workdir, experiment_name(options.config))
    except Interrupted as stop:
        print(f"{stop}; run the same command to go on")
        return 128 + stop.signal_number
    except TrainingFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    finish_run(workdir, run, results)
    return 0


def _eval(options, overrides) -> int:
    _refuse_config(options, overrides, "eval")
    _set_up_jax(options)
    from hybrid_flax.report.evaluation import evaluate_run

    workdir = _need_workdir(options)
    _register_own_mixers(workdir)
    evaluate_run(workdir, split=options.split or "valid", checkpoint=options.checkpoint)
    return 0


def _diagnose(options, overrides) -> int:
    _refuse_config(options, overrides, "diagnose")
    _set_up_jax(options)
    from hybrid_flax.report.diagnosis import diagnose_run, print_diagnosis

    workdir, split = _need_workdir(options), options.split or "valid"
    _register_own_mixers(workdir)
    diagnosis = diagnose_run(workdir, split=split, checkpoint=options.checkpoint)
    print_diagnosis(diagnosis, f"{workdir}, {split} split")
    return 0


def _generate(options, overrides) -> int:
    _refuse_config(options, overrides, "generate")
    _set_up_jax(options)
    from hybrid_flax.generate import generate
    from hybrid_flax.runs import load_run

    workdir = _need_workdir(options)
    _register_own_mixers(workdir)
    run = load_run(workdir, options.checkpoint)
    sample = run.config.sample
    given = {
        "num_tokens": (options.tokens, sample.tokens),
        "temperature": (options.temperature, sample.temperature),
        "top_k": (options.top_k, sample.top_k),
        "top_p": (options.top_p, sample.top_p),
        "seed": (options.seed, 0),
    }
    prompt = sample.prompt if options.prompt is None else options.prompt
    try:
        pieces = generate(
            run, prompt, **{key: default if value is None else value for key, (value, default) in given.items()}
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _predict(options, overrides) -> int:
    _refuse_config(options, overrides, "predict")
    if (options.text is None) == (options.input is None):
        raise ConfigError('predict takes one of --text="..." and --input=FILE (- for stdin), a text a line')
    _set_up_jax(options)
    from hybrid_flax.report.predictions import print_predictions
    from hybrid_flax.runs import load_run

    workdir = _need_workdir(options)
    _register_own_mixers(workdir)
    run = load_run(workdir, options.checkpoint)
    print_predictions(run, [options.text] if options.input is None else _lines(options.input))
    return 0


def _plan(options, overrides) -> int:
    _set_up_jax(options)
    if options.mixers:
        _refuse_config(options, overrides, "plan --mixers")
        from hybrid_flax.report.costs import write_costs

        names = [] if options.mixers == "all" else options.mixers.split(",")
        write_costs(names, options.width or 256, options.length or 1024, options.workdir)
        return 0
    from hybrid_flax.report.plan import make_plan, print_plan
    from hybrid_flax.train.experiment import make_experiment

    config = _config(options, overrides)
    experiment = make_experiment(config)
    print_plan(make_plan(experiment, config.train.steps))
    return 0


def _preview(options, overrides) -> int:
    _set_up_jax(options)
    from hybrid_flax.report.preview import print_preview
    from hybrid_flax.train.experiment import make_experiment

    config = _config(options, overrides)
    print_preview(make_experiment(config), config)
    return 0


def _compare(options, overrides) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process, which only plans: accelerators are for the cells
    _set_up_jax(options)
    from hybrid_flax.compare.protocol import plan_comparison, run_comparison
    from hybrid_flax.report.comparison import write_report
    from hybrid_flax.report.comparison_tables import print_contenders, print_results, write_tables

    _need_config(options)
    title, contenders = plan_comparison(options.config, overrides)
    print_contenders(title, contenders)
    workdir = Path(options.workdir or Path("runs") / _run_name(options.config))
    executor = _executor(options, workdir)
    if options.dry_run:
        return 0
    print(f"folder: {workdir}", flush=True)
    comparison, stopped_by = run_comparison(
        title,
        contenders,
        options.config,
        workdir,
        executor,
        pruner=options.pruner or "none",
        storage=options.storage,
        publish=lambda found: write_tables(found, workdir),
    )
    if stopped_by is not None:
        print(f"stopped by {signal.Signals(stopped_by).name}; run the same command to go on")
        return 128 + stopped_by
    print_results(comparison, workdir)
    print(write_report(comparison, workdir))
    return 0 if comparison.finished() else 1


def _sweep(options, overrides) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # accelerators are for the trials
    _set_up_jax(options)
    from hybrid_flax.report.sweep_report import write_sweep_report
    from hybrid_flax.sweep.definition import read_sweep, run_sweep

    _need_config(options)
    names = [name for name in (options.sweep or "").split(",") if name]
    sweep = read_sweep(options.config, overrides, names, options.search or "grid", options.trials)
    workdir = Path(options.workdir or Path("runs") / f"sweep-{_run_name(options.config)}")
    executor = _executor(options, workdir)
    if options.dry_run:
        from hybrid_flax.jobs.machine import visible_gpus
        from hybrid_flax.report.sweep_plan import print_sweep_plan

        jobs = 1 if options.executor == "lanes" else executor.slots  # lanes share one device
        print_sweep_plan(sweep, workdir, jobs, on_cpu=not visible_gpus())
        return 0
    given = {"pruner": options.pruner or "none", "storage": options.storage, "seed": options.seed or 0}
    print(f"sweep folder: {workdir}", flush=True)
    standings, stopped_by = run_sweep(sweep, workdir, executor, **given)
    print(write_sweep_report(sweep, standings, workdir))
    failed = any(one.state == "failed" for one in standings)
    return int(failed) if stopped_by is None else 128 + stopped_by


def _diff(options, overrides) -> int:
    _refuse_config(options, overrides, "diff")
    from hybrid_flax.report.diff import print_diff

    print_diff(*_need_runs(options, 2))
    return 0


def _reproduce(options, overrides) -> int:
    _refuse_config(options, overrides, "reproduce")
    from hybrid_flax.report.reproduce import reproduce_command

    (run,) = _need_runs(options, 1)
    command = reproduce_command(run, options.workdir)
    print(command.text)
    return main(command.arguments) if options.run else 0


def _certify(options, overrides) -> int:
    if overrides:
        raise ConfigError("certify takes no --config.NAME=VALUE: mixers are certified with their defaults")
    _set_up_jax(options)
    from hybrid_flax.report.certificate import certify_mixers

    if options.config:
        load_config(options.config)
    names = [name for name in (options.mixers or "").split(",") if name]
    cases = 2000 if options.cases is None else options.cases
    return 0 if certify_mixers(names, cases, options.seed or 0, options.workdir or "runs/certificate") else 1


_VERBS = {
    "train": _train,
    "eval": _eval,
    "diagnose": _diagnose,
    "generate": _generate,
    "predict": _predict,
    "plan": _plan,
    "preview": _preview,
    "compare": _compare,
    "sweep": _sweep,
    "diff": _diff,
    "reproduce": _reproduce,
    "certify": _certify,
}


def _parse(argv):
    """(options, overrides): the flags, and the texts "a.b=v" of --config.a.b=v."""
    argv = list(argv)
    verb = argv.pop(0) if argv and not argv[0].startswith("-") else "train"
    if verb not in _VERBS:
        near = difflib.get_close_matches(verb, _VERBS, n=1) or _VERBS
        raise ConfigError(f"unknown command {verb!r}; nearest: {', '.join(near)}")
    overrides = [text.removeprefix("--config.") for text in argv if text.startswith("--config.")]
    parser = _Parser(prog="launch.py", usage=_USAGE, add_help=True, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    parser.add_argument("--split")
    parser.add_argument("--checkpoint")
    parser.add_argument("--prompt")
    parser.add_argument("--text")
    parser.add_argument("--input")
    parser.add_argument("--mixers")
    for name, kind in (
        ("cases", int),
        ("jobs", int),
        ("width", int),
        ("length", int),
        ("tokens", int),
        ("temperature", float),
        ("top_k", int),
        ("top_p", float),
        ("seed", int),
        ("sweep", str),
        ("search", str),
        ("trials", int),
        ("executor", str),
        ("slurm", str),
        ("pruner", str),
        ("storage", str),
    ):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--run", action="store_true")
    if verb in ("diff", "reproduce"):
        parser.add_argument("runs", nargs="*")
    parser.add_argument("--coordinator", help="host:port of process 0, for runs of several processes")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    known, unknown = parser.parse_known_args([text for text in argv if not text.startswith("--config.")])
    if unknown:
        flag = unknown[0].partition("=")[0]
        flags = [text for action in parser._actions for text in action.option_strings]
        near = difflib.get_close_matches(flag, flags, n=2)
        raise ConfigError(f"unknown flag {unknown[0]!r}; nearest: {', '.join(near) or ', '.join(sorted(flags))}")
    known.verb = verb
    return known, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(message)


def _need_config(options):
    if not options.config:
        known = ", ".join(sorted(str(path) for path in Path("experiments").glob("*.py")))
        raise ConfigError(f"no --config given; here are: {known or 'none'}")


def _config(options, overrides):
    _need_config(options)
    return apply_overrides(load_config(options.config), overrides)


def _need_runs(options, count):
    if len(options.runs) != count:
        raise ConfigError(f"{options.verb} takes {count} run folder{'s' * (count > 1)}, {len(options.runs)} given")
    return options.runs


def _executor(options, workdir):
    """What runs the trials of a sweep."""
    from hybrid_flax.jobs.lane_executor import LanesExecutor
    from hybrid_flax.jobs.local import LocalExecutor
    from hybrid_flax.jobs.machine import visible_gpus
    from hybrid_flax.jobs.slurm import SlurmExecutor, parse_parameters

    name = options.executor or "local"
    jobs = 32 if name == "lanes" and options.jobs is None else _jobs(options)
    if name == "slurm":
        return SlurmExecutor(workdir, jobs, parse_parameters(options.slurm or ""))
    if options.slurm:
        raise ConfigError("--slurm goes with --executor=slurm")
    if name == "lanes":
        return LanesExecutor(workdir, jobs)
    if name != "local":
        raise ConfigError(f"--executor={name!r} is none of local, lanes, slurm")
    return LocalExecutor(jobs, visible_gpus())


def _jobs(options):
    """How many processes train at a time: as was said, else as many as there are GPUs to hand out."""
    from hybrid_flax.jobs.machine import visible_gpus

    return max(1, len(visible_gpus())) if options.jobs is None else _at_least_one(options.jobs, "jobs")


def _refuse_config(options, overrides, verb):
    if options.config or overrides:
        raise ConfigError(f"{verb} takes no config of its own: leave out --config")


def _need_workdir(options):
    if not options.workdir:
        runs = sorted(str(path.parent) for path in Path("runs").glob("*/config.json"))
        raise ConfigError(f"no --workdir given; runs here: {', '.join(runs) or 'none'}")
    return options.workdir


def _lines(name):
    """The lines of a file, or of stdin, that are not blank."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input={name} cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"--input={name} has no text")
    return lines


def _register_own_mixers(workdir):
    """Run the experiment file of a run for the mixers that it registers, where there are any."""
    from hybrid_flax.files import read_json
    from hybrid_flax.train.folder import RunFolder

    folder = RunFolder(workdir)
    if folder.config.exists() and read_json(folder.config)["mixers"].keys() - mixer_options().keys():
        load_module(read_json(folder.about)["experiment"])


def _default_workdir(spec, config):
    return str(Path("runs") / f"{_run_name(spec)}-{config_hash(config)}")


def _run_name(spec):
    name, _, arg = spec.partition(":")
    return "-".join(filter(None, (Path(name).stem, arg.replace("/", "_"))))


def _at_least_one(value, name):
    if value is not None and value < 1:
        raise ConfigError(f"--{name}={value} must be at least 1")
    return 1 if value is None else value


def _set_up_jax(options):
    """Compile cache on disk, and the other processes of the run where there are any."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "hybrid_flax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)

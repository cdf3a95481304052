"""The command line: words to a verb and its options, and each verb as the calls that it is. No logic of its own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hybrid_flax
from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.flags import answer, parse
from hybrid_flax.training.signals import Terminated, end_on_signals, stopped_by
from hybrid_flax.verbs import VERBS

__all__ = ["main", "run"]


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    0 done, 1 failed, 2 a mistake in the call, 3 values of training that are not finite, 128 + signal.
    """
    try:
        text = answer(VERBS, argv, f"hybrid_flax {hybrid_flax.__version__}")
        if text is not None:
            print(text)
            return 0
        verb, options = parse(VERBS, argv)
        with end_on_signals():
            return _RUN[verb](options)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Terminated as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:  # a second one, while what the first one asked for was done
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would flush into the pipe
        return 0
    except OSError as error:  # a full disk, a folder that is gone or may not be written
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


def run() -> int:
    """`main` of the words that started this process: the command hybrid-flax."""
    return main(sys.argv[1:])


def _train(options) -> int:
    from hybrid_flax.config import apply_overrides, experiment_name, load_config
    from hybrid_flax.report.finish import finish_run
    from hybrid_flax.training.devices import leave, set_up_jax
    from hybrid_flax.training.diagnose import TrainingFailed
    from hybrid_flax.training.folder import default_folder
    from hybrid_flax.training.loop import train
    from hybrid_flax.training.signals import Interrupted

    set_up_jax(options.coordinator, options.num_processes, options.process_id)
    config = apply_overrides(load_config(options.config, trust=options.trust), options.overrides)
    workdir = options.workdir or default_folder(options.config, config)
    print(f"run folder: {workdir}", flush=True)
    try:
        changed = {"changed_data": options.changed_data, "changed_schedule": options.changed_schedule}
        run, results = train(config, workdir, experiment_name(options.config), **changed)
    except Interrupted as stop:
        print(f"{stop}; run the same command to go on")
        return 128 + stop.signal_number
    except TrainingFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        leave(failure.exit_code)
        return failure.exit_code
    except (ConfigError, OSError, RuntimeError) as failure:
        if options.coordinator is not None:  # the others would wait for this one
            print(f"error: {one_line(failure)[:500]}", file=sys.stderr)
            leave(2 if isinstance(failure, ConfigError) else 1)
        raise
    finish_run(workdir, run, results)
    return 0


def _eval(options) -> int:
    from hybrid_flax.report.evaluation import evaluate_run
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.experiment_source import register_own

    set_up_jax(options.coordinator, options.num_processes, options.process_id)
    register_own(options.workdir, options.config, trust=options.trust)
    evaluate_run(options.workdir, split=options.split, checkpoint=options.checkpoint)
    return 0


def _diagnose(options) -> int:
    from hybrid_flax.report.diagnosis import diagnose_run, print_diagnosis
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.experiment_source import register_own

    set_up_jax()
    register_own(options.workdir, options.config, trust=options.trust)
    diagnosis = diagnose_run(options.workdir, split=options.split, checkpoint=options.checkpoint)
    print_diagnosis(diagnosis, f"{options.workdir}, {options.split} split")
    return 0


def _generate(options) -> int:
    from hybrid_flax.report.sample import print_sample
    from hybrid_flax.runs import load_run
    from hybrid_flax.training.devices import set_up_jax

    set_up_jax()
    run = load_run(options.workdir, options.checkpoint, experiment=options.config, trust=options.trust)
    given = {name: getattr(options, name) for name in ("prompt", "tokens", "temperature", "top_k", "top_p")}
    print_sample(run, **given, seed=options.seed)
    return 0


def _predict(options) -> int:
    from hybrid_flax.predict import read_texts
    from hybrid_flax.report.predictions import print_predictions
    from hybrid_flax.runs import load_run
    from hybrid_flax.training.devices import set_up_jax

    set_up_jax()
    run = load_run(options.workdir, options.checkpoint, experiment=options.config, trust=options.trust)
    print_predictions(run, read_texts(options.input) if options.text is None else [options.text])
    return 0


def _plan(options) -> int:
    from hybrid_flax.config import apply_overrides, load_config
    from hybrid_flax.registration import options_in_use
    from hybrid_flax.report.costs import write_costs
    from hybrid_flax.report.plan import make_plan, print_plan
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.setup import make_setup

    set_up_jax()
    if options.mixers is not None:
        names = [] if options.mixers == ["all"] else options.mixers
        write_costs(names, options.width, options.length, options.workdir)
        return 0
    config = apply_overrides(load_config(options.config, trust=options.trust), options.overrides)
    setup = make_setup(config)
    print_plan(make_plan(setup, config.train.steps), options=options_in_use(config))
    print("\n".join(setup.notes), end="\n" * bool(setup.notes))
    return 0


def _preview(options) -> int:
    from hybrid_flax.config import apply_overrides, load_config
    from hybrid_flax.report.preview import print_preview
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.setup import make_setup

    set_up_jax()
    config = apply_overrides(load_config(options.config, trust=options.trust), options.overrides)
    print_preview(make_setup(config), config)
    return 0


def _compare(options) -> int:
    from hybrid_flax.compare.protocol import plan_comparison, run_comparison
    from hybrid_flax.jobs.executors import make_executor
    from hybrid_flax.report.comparison import write_report
    from hybrid_flax.report.comparison_tables import print_contenders, print_results, write_tables
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.folder import default_folder

    set_up_jax(platforms="cpu")  # of this process, which only plans: accelerators are for the runs
    title, contenders = plan_comparison(options.config, options.overrides)
    print_contenders(title, contenders)
    if options.dry_run:
        return 0
    workdir = Path(options.workdir or default_folder(options.config))
    executor = make_executor(options.executor, workdir, options.jobs, options.slurm)
    print(f"folder: {workdir}", flush=True)
    shared = {"pruner": options.pruner, "storage": options.storage}
    found, signal_number = run_comparison(
        title, contenders, options.config, workdir, executor, publish=lambda f: write_tables(f, workdir), **shared
    )
    if signal_number is not None:
        print(f"{stopped_by(signal_number)}; run the same command to go on")
        return 128 + signal_number
    print_results(found, workdir)
    print(write_report(found, workdir))
    return 0 if found.finished() else 1


def _sweep(options) -> int:
    from hybrid_flax.jobs.executors import default_jobs, make_executor
    from hybrid_flax.jobs.machine import visible_gpus
    from hybrid_flax.report.sweep_plan import print_sweep_plan
    from hybrid_flax.report.sweep_report import write_sweep_report
    from hybrid_flax.sweep.definition import read_sweep
    from hybrid_flax.sweep.run import run_sweep
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.folder import default_folder

    set_up_jax(platforms="cpu")  # accelerators are for the trials
    sweep = read_sweep(options.config, options.overrides, options.sweep, options.search, options.trials)
    workdir = Path(options.workdir or default_folder(options.config, prefix="sweep-"))
    if options.dry_run:
        jobs = 1 if options.executor == "lanes" else options.jobs or default_jobs()  # lanes share one device
        print_sweep_plan(sweep, workdir, jobs, on_cpu=not visible_gpus())
        return 0
    executor = make_executor(options.executor, workdir, options.jobs, options.slurm)
    print(f"sweep folder: {workdir}", flush=True)
    shared = {"pruner": options.pruner, "storage": options.storage}
    standings, signal_number = run_sweep(sweep, workdir, executor, seed=options.seed, **shared)
    print(write_sweep_report(sweep, standings, workdir))
    failed = any(one.state == "failed" for one in standings)
    return int(failed) if signal_number is None else 128 + signal_number


def _diff(options) -> int:
    from hybrid_flax.report.diff import print_diff

    print_diff(*options.words)
    return 0


def _reproduce(options) -> int:
    from hybrid_flax.report.reproduce import reproduce_command

    (folder,) = options.words
    command = reproduce_command(folder, options.workdir, options.config, trust=options.trust)
    print(command.text)
    if options.run:
        command.restore()
        return next(filter(None, map(main, command.arguments)), 0)
    return 0


def _export(options) -> int:
    from hybrid_flax.report.model_card import model_card
    from hybrid_flax.runs import load_run
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.exchange import export_run
    from hybrid_flax.training.folder import RunFolder

    set_up_jax()
    source, target = options.words
    run = load_run(source, options.checkpoint, experiment=options.config, trust=options.trust)
    card = model_card(run, RunFolder(source), Path(target).name)
    print("\n".join(map(str, export_run(run, source, target, card))))
    return 0


def _import(options) -> int:
    from hybrid_flax.runs import load_run
    from hybrid_flax.training.devices import set_up_jax
    from hybrid_flax.training.exchange import import_run

    set_up_jax()
    source, target = options.words
    import_run(load_run(source, experiment=options.config, trust=options.trust), source, target)
    print(f"run folder: {target}")
    return 0


def _certify(options) -> int:
    from hybrid_flax.config import load_config
    from hybrid_flax.report.certificate import certify_mixers
    from hybrid_flax.training.devices import set_up_jax

    set_up_jax()
    if options.config:
        load_config(options.config)
    return 0 if certify_mixers(options.mixers, options.cases, options.seed, options.workdir) else 1


def _new(options) -> int:
    from hybrid_flax.shipped import list_experiments, write_experiment

    lines = list_experiments() if not options.words else write_experiment(options.words[0], getattr(options, "from"))
    print("\n".join(lines))
    return 0


_RUN = {
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
    "export": _export,
    "import": _import,
    "certify": _certify,
    "new": _new,
}

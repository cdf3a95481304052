"""Random cases over the registry: which property of which mixer, on what; the smallest case where one fails."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.certify import cell_properties, mixer_properties
from hybrid_flax.certify.checks import Violation
from hybrid_flax.certify.subjects import (
    BATCH,
    CHUNKS,
    DOCUMENTS,
    LENGTH,
    WIDTH,
    narrowed,
    registered,
    registered_cell,
)
from hybrid_flax.mixers.registry import make_cell, make_mixer, parse_layer, registered_instances

__all__ = ["PROPERTIES", "Counterexample", "Finding", "Property", "certify", "prove"]

_SIMPLER_TRIES = 60  # cases that are run to find the smallest failing one


class Property(NamedTuple):
    """One column of the certificate: the function that proves it, and the mixers that it is asked of.

    kind: "all", "causal", "anticausal" (reads the future), "cell", for the cell alone.
    """

    prove: Callable[..., float]
    kind: str = "all"


PROPERTIES = {
    "split": Property(mixer_properties.any_split, "causal"),
    "packed": Property(mixer_properties.packing),
    "padded": Property(mixer_properties.left_padding),
    "rows": Property(mixer_properties.rows_independent),
    "dirty": Property(mixer_properties.garbage_in_padding),
    "causal": Property(mixer_properties.causality),
    "reach": Property(mixer_properties.reach),
    "cut": Property(mixer_properties.state_is_cut, "causal"),
    "state": Property(mixer_properties.state_contract, "causal"),
    "refuse": Property(mixer_properties.refuses_state, "anticausal"),
    "once": Property(mixer_properties.compiles_once),
    "bf16": Property(mixer_properties.bfloat16),
    "jit": Property(mixer_properties.jit_equals_eager),
    "finite": Property(mixer_properties.finite_gradients),
    "params": Property(mixer_properties.initial_parameters),
    "bits": Property(cell_properties.recurrence_bits, "cell"),
    "forms": Property(cell_properties.forms_agree, "cell"),
}


class Counterexample(NamedTuple):
    """The smallest case found in which a property does not hold: the arguments of `prove`, and what it said."""

    arguments: dict[str, Any]
    message: str


class Finding(NamedTuple):
    """One property of one mixer: the number of cases, their worst relative error, a counterexample if there is one."""

    mixer: str
    property: str
    cases: int
    worst: float
    counterexample: Counterexample | None


def certify(
    names: Sequence[str] = (), cases: int = 2000, seed: int = 0, properties: Sequence[str] = tuple(PROPERTIES)
) -> Iterator[list[Finding]]:
    """Prove the properties of mixers by random cases; gives the findings of one mixer at a time.

    names: layers, all `registered_instances()` by default. cases: their number in all, spread evenly over the
    mixers; every property is asked once, as far as they go, before one is asked again. properties: of `PROPERTIES`.
    Raises ValueError for an unknown name.
    """
    names = list(names) or registered_instances()
    for name in names:
        parse_layer(name)
    for place, name in enumerate(names):
        share = cases * (place + 1) // len(names) - cases * place // len(names)
        yield _certify_mixer(name, properties, share, np.random.default_rng([seed, place]))


def prove(name: str, property: str, **arguments: Any) -> float:
    """One case: the worst relative error of `property` of the mixer `name`. Raises Violation where it does not hold."""
    entry = PROPERTIES[property]
    subject = registered_cell(name) if entry.kind == "cell" else registered(name)
    return entry.prove(subject, **arguments)


def _certify_mixer(name, properties, share, rng):
    kinds = _kinds(name)
    asked = [key for key in properties if PROPERTIES[key].kind in kinds]
    varied = [key for key in asked if _varies(key)]
    spare = share - len(asked) if varied else 0
    order = asked[:share] + [varied[index % len(varied)] for index in range(spare)]
    findings = []
    for key in sorted(set(order), key=asked.index):
        count, worst, counterexample = 0, 0.0, None
        for index in range(order.count(key)):
            arguments = _draw_arguments(name, key, index, rng)
            count += 1
            error, counterexample = _attempt(name, key, arguments)
            if counterexample is not None:
                counterexample = _simplest(name, key, counterexample)
                break
            worst = max(worst, error)
        findings.append(Finding(name, key, count, worst, counterexample))
    return findings


def _kinds(name):
    causal = make_mixer(name, WIDTH, **narrowed(name)).traits.causal
    kinds = {"all", "causal" if causal else "anticausal"}
    is_cell = not parse_layer(name).parts and make_cell(name, WIDTH) is not None
    return kinds | {"cell"} if is_cell else kinds


def _parameters(key):
    return list(inspect.signature(PROPERTIES[key].prove).parameters)[1:]


def _varies(key):
    return bool(_parameters(key)) and key not in ("once", "jit")  # these compile, whatever they are given


def _attempt(name, key, arguments):
    """(worst error, None) or (infinity, counterexample)."""
    try:
        return prove(name, key, **arguments), None
    except Violation as violation:
        return np.inf, Counterexample(arguments, str(violation))
    except Exception as error:  # a mixer under test may raise anything
        line = str(error).splitlines()[0] if str(error) else ""
        return np.inf, Counterexample(arguments, f"{type(error).__name__}: {line}")


def _draw_arguments(name, key, index, rng):
    draws = {
        "rows": lambda: tuple("".join(rng.choice(list("......nnpp"), LENGTH)) for _ in range(BATCH)),
        "split": lambda: _draw_split(rng),
        "orders": lambda: tuple(tuple(int(i) for i in rng.permutation(len(DOCUMENTS))) for _ in range(BATCH)),
        "pads": lambda: tuple(_draw_pads(rng) for _ in range(BATCH)),
        "order": lambda: tuple(int(i) for i in rng.permutation(BATCH)),
        "t": lambda: int(rng.integers(LENGTH)),
        "seed": lambda: int(rng.integers(2**32)),
        "form": lambda: _form(name, key, index),
    }
    return {parameter: draws[parameter]() for parameter in _parameters(key)}


def _form(name, key, index):
    """Forms take turns. Bits are compared of those that compute step by step."""
    forms = list(registered_cell(name).run)
    if key == "bits":
        forms = [form for form in forms if form in ("sequential", "deferred")]
    return forms[index % len(forms)]


def _draw_split(rng):
    lengths: list[int] = []
    while (left := LENGTH - sum(lengths)) > 0:
        lengths.append(int(rng.choice([length for length in CHUNKS if length <= left])))
    return tuple(lengths)


def _draw_pads(rng):
    return tuple(sorted(int(i) for i in rng.choice(LENGTH, LENGTH - sum(DOCUMENTS), replace=False)))


def _simplest(name, key, counterexample):
    """The counterexample after greedy simplification: fewer documents, less padding, longer chunks."""
    tries = _SIMPLER_TRIES
    improved = True
    while improved and tries > 0:
        improved = False
        for simpler in _simpler(counterexample.arguments):
            tries -= 1
            _, smaller = _attempt(name, key, simpler)
            if smaller is not None:
                counterexample, improved = smaller, True
                break
            if tries <= 0:
                break
    return counterexample


def _simpler(arguments):
    """Arguments that are a little simpler, the simplest first."""
    rows, split = arguments.get("rows"), arguments.get("split")
    if split is not None:
        for candidate in ((8, 8), (1,) * 8 + (8,), (8,) + (1,) * 8):
            if len(candidate) < len(split):
                yield arguments | {"split": candidate}
    if rows is not None:
        for place, row in enumerate(rows):
            plain = "." * LENGTH
            if row != plain:
                yield arguments | {"rows": (*rows[:place], plain, *rows[place + 1 :])}
        for place, row in enumerate(rows):
            for t, letter in enumerate(row):
                if letter != ".":
                    yield arguments | {"rows": (*rows[:place], f"{row[:t]}.{row[t + 1 :]}", *rows[place + 1 :])}

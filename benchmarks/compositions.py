"""Random layers, fusions within fusions with options, pass the fast part of the certificate; wrong ones get one line.

    python benchmarks/compositions.py --layers=500 --wrong=300 --seed=0 --jobs=2    # an hour of one core
    python benchmarks/compositions.py --layers=20 --wrong=300                       # a look

Each right layer is asked every property of FAST once, on random documents, splits and parameters. Each wrong one is
wrong by how it was made (tests/fuzz/grammar.py), and must be refused by a ValueError of one line. Prints counts, what
fails, and the smallest layer found that does; the exit code is 1 where there is one.
"""

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from fuzz.grammar import Tree, draw_layer, draw_wrong, simpler

from hybrid_flax.certify import certify
from hybrid_flax.certify.subjects import WIDTH, forget
from hybrid_flax.mixers.registry import make_mixer, parse_layer
from hybrid_flax.training.progress import track

FAST = ("split", "packed", "padded", "rows", "causal", "reach", "state", "refuse", "bf16", "params")
_TRIES = 12  # layers that are tried to find the smallest one that fails


class Fault(NamedTuple):
    """A layer that fails. asked: the property, or the kind of a wrong layer. said: what is wrong."""

    number: int
    layer: str
    asked: str
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--wrong", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    kinds, faults = check_wrong(options.seed, options.wrong)
    print(f"{options.wrong} wrong layers, {len(kinds)} kinds: {len(faults)} without an error of one line", flush=True)
    print_faults(faults)
    cases = [(options.seed, number) for number in range(options.layers)]
    depths: Counter[int] = Counter()
    proofs, failing = 0, []
    for depth, count, found in track(_check_all(cases, options.jobs), "layers", total=len(cases)):
        depths[depth] += 1
        proofs += count
        failing += [found] if found else []
        print_faults(found)
    print(f"{len(cases)} layers, by fusions within one another: {dict(sorted(depths.items()))}")
    print(f"{proofs} proofs of {', '.join(FAST)}: {len(failing)} layers fail")
    if failing:
        smallest = min((found[0] for found in failing), key=lambda fault: len(fault.layer))
        print(f"smallest: {shrink(options.seed, smallest)!r}: {smallest.asked}")
    sys.exit(bool(faults or failing))


def print_faults(faults: Sequence[Fault]) -> None:
    """A line each."""
    for fault in faults:
        print(f"{fault.number} {fault.layer!r}: {fault.asked}: {fault.said}", flush=True)


def make_layer(seed: int, number: int) -> Tree:
    """Layer `number` of `seed`, of two to four fusions within one another."""
    rng = random.Random(f"{seed}/{number}")
    return draw_layer(rng, rng.choices((2, 3, 4), (14, 5, 1))[0])


def check_layer(case: tuple[int, int]) -> tuple[int, int, list[Fault]]:
    """(how many fusions within one another, proofs, faults) of layer `number` of `seed`."""
    seed, number = case
    tree = make_layer(seed, number)
    return _depth(tree), *_prove(seed, number, str(tree), FAST)


def check_wrong(seed: int, count: int) -> tuple[Counter[str], list[Fault]]:
    """(how many of each kind, faults) of `count` wrong layers."""
    rng = random.Random(f"{seed}/wrong")
    kinds: Counter[str] = Counter()
    faults = []
    for number in range(count):
        kind, layer = draw_wrong(rng)
        kinds[kind] += 1
        try:
            make_mixer(layer, WIDTH)
            said = "is accepted"
        except ValueError as error:
            said = "" if str(error).strip() and len(str(error).splitlines()) == 1 else f"not one line: {error}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if said:
            faults.append(Fault(number, layer, kind, said))
    return kinds, faults


def shrink(seed: int, fault: Fault) -> str:
    """The smallest layer found that fails the same property."""
    tree, tried, again = make_layer(seed, fault.number), 0, True
    while again:
        again = False
        for candidate in simpler(tree):
            tried += 1
            if tried > _TRIES:
                break
            if _prove(seed, fault.number, str(candidate), (fault.asked,))[1]:
                tree, again = candidate, True
                break
    return str(tree)


def _prove(seed: int, number: int, layer: str, properties: tuple[str, ...]) -> tuple[int, list[Fault]]:
    faults = []
    if str(parse_layer(str(parse_layer(layer)))) != str(parse_layer(layer)):
        faults.append(Fault(number, layer, "text", f"reads as {parse_layer(layer)}"))
    (findings,) = certify([layer], len(properties), seed * 2**20 + number, properties)
    for finding in findings:
        if finding.counterexample is not None:
            faults.append(Fault(number, layer, finding.property, finding.counterexample.message))
    forget()
    return sum(finding.cases for finding in findings), faults


def _check_all(cases: list[tuple[int, int]], jobs: int) -> Iterator[tuple[int, int, list[Fault]]]:
    if jobs == 1:
        yield from map(check_layer, cases)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check_layer, cases)


def _depth(tree: Tree) -> int:
    return 1 + max(map(_depth, tree.parts)) if tree.parts else 0


if __name__ == "__main__":
    main()

"""Milliseconds of every form of every cell, forward and forward + backward: what `choose_form` should pick.

    python benchmarks/forms.py                            # on an accelerator: 8 rows x 2048 tokens x width 1024, bf16
    python benchmarks/forms.py --tiny                     # anywhere: 4 rows x 256 tokens x width 64, float32
    python benchmarks/forms.py --cells=gla,lstm --rows=2 --length=512 --width=128

A cell is run as the mixer `recurrent(cell, form=...)`, input and output maps included. The forms of a cell take turns
over the rounds in one process; a figure is the median, "chosen" is what form="auto" runs on this device.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from hybrid_flax.mixers.recurrent import choose_form
from hybrid_flax.mixers.registry import make_cell, make_mixer, registered_mixers
from hybrid_flax.typing import Segments


def main() -> None:
    """Measure and print a Markdown table, and one JSON object a form with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cells", default="")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sizes = {"rows": 4, "length": 256, "width": 64, "dtype": "float32"}
    if not options.tiny:
        sizes = {"rows": 8, "length": 2048, "width": 1024, "dtype": "bfloat16"}
    sizes |= {name: value for name, value in vars(options).items() if name in sizes and value is not None}
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {sizes}\n")
    print("| cell | form | forward ms | forward + backward ms | chosen |\n|---|---|--:|--:|---|")
    names = options.cells.split(",") if options.cells else registered_mixers()
    for name in names:
        cell = make_cell(name, sizes["width"])
        if cell is None:
            continue
        for form, forward, both in measure(name, ("sequential", *cell.forms), options.rounds, **sizes):
            chosen = "yes" if form == choose_form(cell, sizes["length"]) else ""
            print(f"| `{name}` | {form} | {forward:.2f} | {both:.2f} | {chosen} |", flush=True)
            if options.json:
                print(json.dumps({"cell": name, "form": form, "forward_ms": forward, "both_ms": both} | sizes))


def measure(name: str, forms: tuple[str, ...], rounds: int, *, rows: int, length: int, width: int, dtype: str):
    """(form, milliseconds forward, milliseconds forward and backward) of every form, the median of `rounds`."""
    segments = jax.device_put(Segments.single(rows, length))
    x = jax.random.normal(jax.random.key(0), (rows, length, width), dtype)
    programs = {}
    for form in forms:
        mixer = make_mixer(name, width, form=form)
        params = jax.jit(mixer.init)(jax.random.key(1))
        programs[form] = (jax.jit(_forward(mixer)), jax.jit(_gradient(mixer)), params)
    seconds = {form: ([], []) for form in forms}
    for turn in range(rounds + 1):  # the first one compiles
        for form, (forward, gradient, params) in programs.items():
            for place, program in enumerate((forward, gradient)):
                since = time.perf_counter()
                jax.block_until_ready(program(params, x, segments))
                if turn:
                    seconds[form][place].append(time.perf_counter() - since)
    for form in forms:
        yield form, *(1e3 * statistics.median(times) for times in seconds[form])


def _forward(mixer):
    return lambda params, x, segments: mixer.apply(params, x, segments)[0]


def _gradient(mixer):
    def loss(params, x, segments):
        return jnp.sum(mixer.apply(params, x, segments)[0].astype(jnp.float32))

    return jax.value_and_grad(loss, (0, 1))


if __name__ == "__main__":
    main()

"""Matrix methods side by side in one process: how long a step takes, what it needs, what a refresh costs.

    python tests/benchmarks/matrix_methods.py                        # two layers of width 256: some minutes
    python tests/benchmarks/matrix_methods.py --width 64 --layers 1 --periods 1
    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/matrix_methods.py --clock processor   # on a busy machine
    python tests/benchmarks/matrix_methods.py --methods muon soap "soap, spread"
    python tests/benchmarks/matrix_methods.py --json tests/benchmarks/matrix_methods.json   # for the page

All get the same parameters and gradients, those of a small GPT's layers. A round takes one step of each
method, and the next round begins with another one. Factors are refreshed every 10 steps, so that of
PSGD-Kron p = 0.1, and a run is some whole periods after the first one.

trace + compile  tracing, lowering and compiling a jitted step, with JAX's caches emptied before
temporaries      megabytes that XLA sets aside for a step beside arguments and results: exact
state            megabytes of state
median           of a compiled step, with donated parameters and state: one without a refresh
mean             of all steps, those with a refresh in them
max              of all steps: one with a refresh. "spread" has a part of it in each step
ratio            the median of the ratios of the rounds to the first method in the table

The JSON has median, mean and maximum in seconds by both clocks, OPENBLAS_NUM_THREADS, and the load: how
many processes wanted a core, before and after. The page "Matrix methods" shows them.

A method that this version does not have is left out, and said so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from against_optax import gpt_shapes

import adaptive_jax as aj

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.mean,
    "max": max,
}
PERIOD = 10
RATE = 1e-3


def theirs() -> optax.GradientTransformation:
    """optax's Muon, of all arrays with two axes, which are the same ones here."""
    return optax.contrib.muon(RATE)


METHODS: dict[str, tuple[str | None, Callable[[], Any]]] = {
    "optax muon": (None, theirs),
    "adamw": ("adamw", lambda: aj.adamw(RATE)),
    "muon": ("muon", lambda: aj.muon(RATE)),
    "normuon": ("muon", lambda: aj.muon(RATE, normuon=True)),
    "shampoo": ("shampoo", lambda: aj.shampoo(RATE, refresh_every=PERIOD)),
    "shampoo, spread": (
        "shampoo",
        lambda: aj.shampoo(RATE, refresh_every=PERIOD, spread_refresh=True),
    ),
    "soap": ("soap", lambda: aj.soap(RATE, refresh_every=PERIOD)),
    "soap, spread": ("soap", lambda: aj.soap(RATE, refresh_every=PERIOD, spread_refresh=True)),
    "psgd_kron": (
        "psgd_kron",
        lambda: aj.psgd_kron(RATE, preconditioner_update_probability=1 / PERIOD),
    ),
}
"""From what is measured to the function of `aj` that it needs, and how it is made."""


@dataclasses.dataclass
class Measured:
    """A method: its compiled step, where it is, and what was measured of it."""

    step: Callable[..., Any]
    run: tuple[Any, Any]
    build: float
    temporaries: int
    state: int
    seconds: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {name: [] for name in CLOCKS}
    )

    @classmethod
    def of(cls, tx: Any, params: Any, clock: Callable[[], float]) -> Measured:
        """Compiles the step."""

        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        run = jax.tree.map(jnp.copy, params), tx.init(params)
        jax.clear_caches()
        start = clock()
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*run, params).compile()
        build = clock() - start
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        return cls(
            compiled, run, build, temporaries, sum(x.nbytes for x in jax.tree.leaves(run[1]))
        )

    def take_step(self, gradients: Any) -> None:
        """Takes one step, and notes how long it took by each clock."""
        start = {name: clock() for name, clock in CLOCKS.items()}
        self.run = jax.block_until_ready(self.step(*self.run, gradients))
        for name, clock in CLOCKS.items():
            self.seconds[name].append(clock() - start[name])

    def figures(self) -> dict[str, Any]:
        """What the JSON has of it: of the steps after the first period."""
        return {
            "build": round(self.build, 2),
            "temporaries": self.temporaries,
            "state": self.state,
            **{
                name: {key: float(f"{f(seconds[PERIOD:]):.4g}") for key, f in SUMMARIES.items()}
                for name, seconds in self.seconds.items()
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--periods", type=int, default=3, help="of ten steps, after the first")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    clock, load = CLOCKS[options.clock], os.getloadavg()[0]

    shapes = gpt_shapes(width=options.width, vocabulary=1, positions=1, layers=options.layers)
    random = np.random.default_rng(0)
    params, *gradients = (
        jax.tree.map(
            lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
            shapes["layers"],
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for _ in range(4)
    )
    names = [
        name
        for name in options.methods
        if (needed := METHODS[name][0]) is None or hasattr(aj, needed)
    ]
    if left_out := [name for name in options.methods if name not in names]:
        print(f"left out, as this version has none: {', '.join(left_out)}")
    with jax.numpy_dtype_promotion("standard"):  # optax's Muon multiplies integers by floats.
        found = {name: Measured.of(METHODS[name][1](), params, clock) for name in names}
        for step in range(PERIOD * (1 + options.periods)):
            for name in names[step % len(names) :] + names[: step % len(names)]:
                found[name].take_step(gradients[step % len(gradients)])

    print(
        f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters in "
        f"{len(jax.tree.leaves(params))} arrays, {options.clock} clock, {jax.default_backend()}\n"
    )
    titles = "method", "trace + compile", "temporaries", "state", "median", "mean", "max", "ratio"
    for line in (titles, ["---"] * len(titles)):
        print("| " + " | ".join(line) + " |")
    first = found[names[0]].seconds[options.clock][PERIOD:]
    for name, each in found.items():
        seconds = each.seconds[options.clock][PERIOD:]
        ratio = statistics.median(x / y for x, y in zip(seconds, first, strict=True))
        cells = [
            name, f"{each.build:.1f} s", f"{each.temporaries / 1e6:.1f} MB", f"{each.state / 1e6:.1f} MB",
            *(f"{1e3 * f(seconds):.1f} ms" for f in SUMMARIES.values()),
            f"{ratio:.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    if options.json is not None:
        told = {
            "width": options.width,
            "layers": options.layers,
            "period": PERIOD,
            "steps": PERIOD * options.periods,
            "versions": {"jax": jax.__version__},
            "cores": os.cpu_count(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
            "methods": {name: each.figures() for name, each in found.items()},
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

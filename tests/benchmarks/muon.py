"""aj.muon and optax.contrib.muon side by side in one process, on a GPT of 12 layers.

    python tests/benchmarks/muon.py                       # width 256: some minutes
    python tests/benchmarks/muon.py --width 64 --rounds 3
    python tests/benchmarks/muon.py --json tests/benchmarks/muon.json   # for the page "Matrix methods"

Both get the same parameters and gradients, and orthogonalize the same 48 matrices: optax's is told by its
`muon_weight_dimension_numbers` to leave the embeddings to Adam, as ours does by itself. A round measures
each once, the next one in the other order; a figure is the median of all rounds, a ratio that of the
ratios of the rounds, ours over theirs. It is taken by two clocks: the one on the wall, and that of the
processors, which does not see what else a busy machine does. The load is how many processes wanted a
core, before and after.

build        tracing, lowering and compiling a jitted step, with JAX's caches emptied before
step         a compiled step with donated parameters and state, which are copied before the clock starts
temporaries  memory that XLA sets aside for the step, beside arguments and results: exact, so taken once

After the first step the updates are compared: both without Nesterov momentum, of which optax's has
another direction.
"""

from __future__ import annotations

import argparse
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


def is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def theirs(shapes: Any) -> optax.GradientTransformation:
    def dimensions(path: Any, shape: tuple[int, ...]) -> Any:
        is_hidden = len(shape) == 2 and "embedding" not in jax.tree_util.keystr(path)
        return optax.contrib.MuonDimensionNumbers() if is_hidden else None

    numbers = jax.tree_util.tree_map_with_path(dimensions, shapes, is_leaf=is_shape)
    return optax.contrib.muon(0.02, nesterov=False, muon_weight_dimension_numbers=numbers)


def step_of(tx: optax.GradientTransformation) -> Callable[..., Any]:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def timed(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """How long a function takes by each clock, and what it returns."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    found = function()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}, found


def built(tx: Any, params: Any) -> tuple[dict[str, float], Any]:
    """How long it takes to compile a step, and the step."""
    state = tx.init(params)
    jax.clear_caches()
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    return timed(lambda: step.lower(params, state, params).compile())


def run(step: Any, tx: Any, params: Any, gradients: Any) -> dict[str, float]:
    """How long a step takes."""
    own = jax.block_until_ready(jax.tree.map(jnp.copy, (params, tx.init(params))))
    return timed(lambda: jax.block_until_ready(step(*own, gradients)))[0]


def check_equal(steps: dict[str, Any], contenders: dict[str, Any], params: Any, gradients: Any):
    """Raises unless both take the same first step, to the accuracy of float32."""
    after = []
    for name, tx in contenders.items():
        own = jax.tree.map(jnp.copy, (params, tx.init(params)))
        after.append(jax.tree.leaves(steps[name](*own, gradients)[0]))
    worst = max(
        float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y - p)))
        for x, y, p in zip(*after, jax.tree.leaves(params), strict=True)
    )
    assert worst < 1e-2, f"their steps differ by {worst:.2g} of the largest"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    load = os.getloadavg()[0]

    shapes = gpt_shapes(width=options.width, vocabulary=8_000, positions=512, layers=options.layers)
    rng = np.random.default_rng(0)
    params, gradients = (
        jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s), jnp.float32), shapes, is_leaf=is_shape
        )
        for _ in range(2)
    )
    with jax.numpy_dtype_promotion("standard"):
        ours = aj.muon(0.02, nesterov=False, rest=aj.adam(0.02))  # With ε and β₂ of optax's Adam.
        contenders = {"ours": ours, "optax": theirs(shapes)}
        samples: dict[str, dict[str, list[dict[str, float]]]] = {
            name: {"build": [], "step": []} for name in contenders
        }
        steps = {}
        for turn in range(options.builds):
            for name in list(contenders)[:: 1 - 2 * (turn % 2)]:
                seconds, steps[name] = built(contenders[name], params)
                samples[name]["build"].append(seconds)
        check_equal(steps, contenders, params, gradients)
        for turn in range(options.rounds):
            for name in list(contenders)[:: 1 - 2 * (turn % 2)]:
                seconds = run(steps[name], contenders[name], params, gradients)
                samples[name]["step"].append(seconds)

    found: dict[str, Any] = {
        "width": options.width,
        "layers": options.layers,
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
        "cores": os.cpu_count(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    for column in ("build", "step"):
        for clock in CLOCKS:
            own, others = ([each[clock] for each in samples[name][column]] for name in contenders)
            found[f"{column}, {clock}"] = {
                "ours": round(statistics.median(own), 4),
                "optax": round(statistics.median(others), 4),
                "ratio": round(
                    statistics.median(x / y for x, y in zip(own, others, strict=True)), 3
                ),
            }
    own, others = (steps[name].memory_analysis().temp_size_in_bytes / 1e6 for name in contenders)
    found["temporaries"] = {"ours": own, "optax": others, "ratio": round(own / others, 3)}
    print(f"{len(jax.tree.leaves(params))} arrays, {jax.default_backend()}, load {found['load']}")
    for title, each in found.items():
        if isinstance(each, dict) and "ratio" in each:
            unit = "MB" if title == "temporaries" else "s"
            print(
                f"{title:16} {each['ours']:9.3f} {unit}   optax {each['optax']:9.3f} {unit}   "
                f"ratio {each['ratio']:.2f}"
            )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

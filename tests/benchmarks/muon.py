"""aj.muon and optax.contrib.muon side by side in one process, on a GPT of 12 layers.

    python tests/benchmarks/muon.py                       # width 256: some minutes
    python tests/benchmarks/muon.py --width 64 --rounds 3
    python tests/benchmarks/muon.py --clock processor     # on a busy machine

Both get the same parameters and gradients, and orthogonalize the same 48 matrices: optax's is told by its
`muon_weight_dimension_numbers` to leave the embeddings to Adam, as ours does by itself. A round measures
each once, the next one in the other order; a figure is the median of all rounds, a ratio that of the
ratios of the rounds, ours over theirs.

build        tracing, lowering and compiling a jitted step, with JAX's caches emptied before
step         a compiled step with donated parameters and state, which are copied before the clock starts
temporaries  memory that XLA sets aside for the step, beside arguments and results: exact, so taken once

After the first step the updates are compared: both without Nesterov momentum, of which optax's has
another direction.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
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


def built(tx: Any, params: Any, clock: Callable[[], float]) -> tuple[float, Any]:
    """How long it takes to compile a step, and the step."""
    state = tx.init(params)
    jax.clear_caches()
    start = clock()
    step = jax.jit(step_of(tx), donate_argnums=(0, 1)).lower(params, state, params).compile()
    return clock() - start, step


def run(step: Any, tx: Any, params: Any, gradients: Any, clock: Callable[[], float]) -> float:
    """How long a step takes."""
    own = jax.block_until_ready(jax.tree.map(jnp.copy, (params, tx.init(params))))
    start = clock()
    jax.block_until_ready(step(*own, gradients))
    return clock() - start


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
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]

    shapes = gpt_shapes(width=options.width, vocabulary=8_000, positions=512, layers=options.layers)
    rng = np.random.default_rng(0)
    params, gradients = (
        jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s), jnp.float32), shapes, is_leaf=is_shape
        )
        for _ in range(2)
    )
    with jax.numpy_dtype_promotion("standard"):
        contenders = {"ours": aj.muon(0.02, nesterov=False), "optax": theirs(shapes)}
        samples: dict[str, dict[str, list[float]]] = {
            name: {"build": [], "step": []} for name in contenders
        }
        steps = {}
        for turn in range(options.builds):
            for name in list(contenders)[:: 1 - 2 * (turn % 2)]:
                seconds, steps[name] = built(contenders[name], params, clock)
                samples[name]["build"].append(seconds)
        check_equal(steps, contenders, params, gradients)
        for turn in range(options.rounds):
            for name in list(contenders)[:: 1 - 2 * (turn % 2)]:
                seconds = run(steps[name], contenders[name], params, gradients, clock)
                samples[name]["step"].append(seconds)

    print(f"{len(jax.tree.leaves(params))} arrays, {options.clock} clock, {jax.default_backend()}")
    for column in ("build", "step"):
        of_each = [samples[name][column] for name in contenders]
        ours, others = map(statistics.median, of_each)
        ratio = statistics.median(x / y for x, y in zip(*of_each, strict=True))
        print(f"{column:12} {ours:9.3f} s   optax {others:9.3f} s   ratio {ratio:.2f}")
    ours, others = (
        x.memory_analysis().temp_size_in_bytes / 1e6 for x in map(steps.get, contenders)
    )
    print(f"temporaries  {ours:9.2f} MB  optax {others:9.2f} MB  ratio {ours / others:.2f}")


if __name__ == "__main__":
    main()

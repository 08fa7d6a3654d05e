"""Tiles on a real GPU: do they agree with XLA, are their bits repeatable, and how fast are which tiles.

    PYTHONPATH=. python tests/benchmarks/tiles_on_gpu.py [--out tiles_on_gpu.json] [--seconds 170]

It needs a GPU, jax and optax. Each check is by itself: one that fails is written down, and the next one
runs. After so many seconds no further check begins. `--rehearse` runs all of them on a CPU, with small
arrays and interpreted kernels, to see that they run at all.

What is printed, and written as JSON:

- agree: for each storage and shape, one donated step of Adam on tiles and on whole arrays, from the same
  state. `ulp`: by how many units in the last place of a parameter the two differ at most, of those that
  are above a thousandth of the largest. `codes`: by how many steps of a code at most: 1, where a random bit
  decides between two neighbours. `share`: of the numbers of the state that differ at all.
- bits: whether three steps, done twice, give the same bits.
- time: of a donated step of one large array, in ms: the best of some rounds; GB/s are the bytes that have
  to be moved, over that time, and `of_copy` their part of what a plain copy moves; temporaries in bytes
  per parameter; seconds to compile. Whole arrays, as XLA has them, first; then tiles by rows and warps.
- runs: `train_step(tiles=True)`, which must not warn, its losses beside those of whole arrays; and under
  `vmap` and `grad`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
import traceback
import warnings

if "--rehearse" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj
from adaptive_jax._core.tiles.backends import Interpreted, Triton
from adaptive_jax.transforms.precision import Rounding, update_and_add

STORAGES = {
    "float32": None,
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int8+int16": {"mu": "int8", "nu": "int16"},
}
SHAPES = [(64, 1024), (37, 700), (2, 3, 16, 512), (1, 4999)]
TILES = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (4, 4), (8, 8)]
ROUNDS, STEPS = 3, 10


class Report:
    """What was found, printed and kept."""

    def __init__(self, out: str | None, seconds: float) -> None:
        self.out, self.end, self.start = out, time.time() + seconds, time.time()
        devices = [str(device) for device in jax.devices()]
        kind = jax.devices()[0].device_kind
        self.found: dict = {"jax": jax.__version__, "devices": devices, "kind": kind, "checks": []}
        print(f"jax {jax.__version__} on {kind}", flush=True)

    def check(self, name: str, function, *args, **kwargs) -> dict | None:
        """Does one check, whatever comes of it."""
        entry = {"name": name}
        if time.time() > self.end:
            entry["skipped"] = "no time is left"
        else:
            try:
                entry |= function(*args, **kwargs)
            except Exception as error:
                entry["error"] = f"{type(error).__name__}: {error}"[:2000]
                entry["where"] = traceback.format_exc()[-2000:]
        self.found["checks"].append(entry)
        shown = {key: value for key, value in entry.items() if key not in ("name", "where")}
        print(f"{name:44} {json.dumps(shown)[:300]}", flush=True)
        self.found["seconds"] = round(time.time() - self.start, 1)
        if self.out:
            pathlib.Path(self.out).write_text(json.dumps(self.found, indent=1))
        return entry if "error" not in entry and "skipped" not in entry else None


def numbers(shape, seed, dtype=jnp.float32):
    """Normal numbers of all sizes."""
    first, second = jax.random.split(jax.random.key(seed))
    spread = jnp.exp(2 * jax.random.normal(first, shape))
    return (jax.random.normal(second, shape) * spread).astype(dtype)


def step_of(tx, backend):
    """A donated step: new parameters and a new state."""

    def step(params, state, gradients, count):
        adding = Rounding("stochastic", count)
        return update_and_add(tx, gradients, state, params, adding, backend)

    return jax.jit(step, donate_argnums=(0, 1))


def run(tx, shape, backend, steps, dtype=jnp.float32):
    """Parameters and state after some steps."""
    step, params = step_of(tx, backend), numbers(shape, 0, dtype)
    state = tx.init(params)
    for count in range(steps):
        gradients = numbers(shape, count + 1, dtype)
        params, state = step(params, state, gradients, jnp.int32(count))
    return jax.device_get((params, state))


def agreement(tx, shape, backend, dtype=jnp.float32):
    """One step on tiles beside one of whole arrays."""
    (a, state_a), (b, state_b) = (run(tx, shape, each, 1, dtype) for each in (None, backend))
    result = {"ulp": ulps(a, b), "codes": 0, "share": 0.0}
    for x, y in zip(jax.tree.leaves(state_a), jax.tree.leaves(state_b), strict=True):
        if not x.ndim:
            continue
        if x.dtype.kind in "iu":
            codes = int(np.max(np.abs(x.astype(np.int64) - y.astype(np.int64))))
            result["codes"] = max(result["codes"], codes)
        result["share"] = max(result["share"], float(np.mean(x != y)))
    return result


def ulps(x, y):
    """By how many units in the last place two arrays differ, where they are not small."""
    unit = 2.0**-8 if x.dtype == jnp.bfloat16 else 2.0**-23
    x, y = x.astype(np.float64), y.astype(np.float64)
    large = np.abs(x) > 1e-3 * np.max(np.abs(x))
    return round(float(np.max(np.abs(x - y)[large] / np.abs(x)[large])) / unit, 2)


def repeatability(tx, shape, backend):
    """Whether the same steps give the same bits."""
    first, second = (jax.tree.leaves(run(tx, shape, backend, 3)) for _ in range(2))
    same = all(x.tobytes() == y.tobytes() for x, y in zip(first, second, strict=True))
    return {"same_bits": same}


def bandwidth(shape):
    """What a copy of an array moves."""
    copy = jax.jit(lambda x: x + 1, donate_argnums=())
    x = jnp.zeros(shape)
    seconds = best(lambda x: copy(x), x)
    return {"ms": round(seconds * 1e3, 3), "GB/s": round(2 * x.nbytes / seconds / 1e9)}


def best(step, carry, *rest):
    """Seconds of one call, whose result is handed on; the best of some rounds."""
    carry = jax.block_until_ready(step(carry, *rest))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS):
            carry = step(carry, *rest)
        jax.block_until_ready(carry)
        times.append((time.perf_counter() - start) / STEPS)
    return min(times)


def timing(tx, shape, backend, dtype=jnp.float32, copied=None):
    """The time of a donated step of one array."""
    params = jnp.full(shape, 0.5, dtype)
    state, gradients = tx.init(params), jnp.full(shape, 1e-2, dtype)
    count = jnp.int32(1)
    start = time.perf_counter()
    step = step_of(tx, backend).lower(params, state, gradients, count).compile()
    compiling = time.perf_counter() - start
    moved = 3 * params.nbytes + 2 * sum(x.nbytes for x in jax.tree.leaves(state))
    memory, size = step.memory_analysis(), params.size
    seconds = best(lambda carry, *rest: step(*carry, *rest), (params, state), gradients, count)
    speed = moved / seconds / 1e9
    return {
        "ms": round(seconds * 1e3, 3),
        "GB/s": round(speed),
        "of_copy": round(speed / copied, 3) if copied else None,
        "temporaries": round(memory.temp_size_in_bytes / size, 3),
        "compile_s": round(compiling, 2),
    }


def training(tiles, storage, steps):
    """Losses of a small network, through `train_step`."""

    def loss(params, batch):
        hidden = jnp.tanh(batch @ params["in"])
        return jnp.mean((hidden @ params["out"] - batch) ** 2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = aj.train_step(loss, tiles=tiles)
        params = {"in": 0.05 * numbers((256, 512), 1), "out": 0.05 * numbers((512, 256), 2)}
        params = jax.tree.map(lambda x: jnp.clip(x, -0.1, 0.1), params)
        state = aj.TrainState.create(params, aj.adamw(3e-3, storage=storage))
        batch, losses = jax.random.normal(jax.random.key(3), (128, 256)), []
        for _ in range(steps):
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
    losses = [round(float(x), 5) for x in losses]
    told = sorted({str(each.message)[:150] for each in caught})
    return {"first": losses[0], "last": losses[-1], "told": told}


def under_transformations(backend, shape):
    """`vmap` and `grad` of a step."""
    params, gradients = numbers(shape, 1), numbers(shape, 2)

    def total(rate, gradients):
        tx = aj.adam(rate, storage="int8")
        adding = Rounding("nearest", None)
        new, _ = update_and_add(tx, gradients, tx.init(params), params, adding, backend)
        return jnp.sum(new)

    many = jax.vmap(total)(jnp.array([1e-3, 1e-2]), jnp.stack([gradients, 2 * gradients]))
    slope = jax.grad(total)(1e-3, gradients)
    one = total(1e-3, gradients)
    return {"vmap": float(many[0]), "one": float(one), "slope": float(slope)}


def main() -> None:
    """All checks, the most important ones first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pallas's Triton says that it will go.
    rehearse = options.rehearse
    report = Report(options.out, options.seconds)

    def backend(height=4, warps=4):
        return Interpreted(height) if rehearse else Triton(height, warps)

    def adam(storage):
        return aj.adam(1e-3, storage=STORAGES[storage])

    for storage in STORAGES:
        report.check(f"agree {storage} {SHAPES[0]}", agreement, adam(storage), SHAPES[0], backend())
    report.check("bits int8", repeatability, adam("int8"), SHAPES[1], backend())

    large = (128, 1024) if rehearse else (8192, 16384)
    copy = report.check(f"copy {large}", bandwidth, large)
    copied = copy["GB/s"] if copy else None
    for storage in STORAGES:
        rows = [(None, None), *TILES[: 2 if rehearse else 3]]
        for height, warps in rows:
            name = "whole" if height is None else f"tiles {height} rows, {warps} warps"
            used = None if height is None else backend(height, warps)
            what = f"time {storage} {name}"
            report.check(what, timing, adam(storage), large, used, copied=copied)

    for storage in ("float32", "int8"):
        for tiles in (False, backend() if rehearse else True):
            name = f"runs {storage} {'tiles' if tiles else 'whole'}"
            report.check(name, training, tiles, STORAGES[storage], 5 if rehearse else 100)
    report.check("runs under vmap and grad", under_transformations, backend(), (16, 512))

    for shape in SHAPES[1:]:
        for storage in STORAGES:
            report.check(f"agree {storage} {shape}", agreement, adam(storage), shape, backend())
    low = jnp.bfloat16
    for storage in ("bfloat16", "int8"):
        name = f"agree {storage} {SHAPES[1]} bfloat16"
        report.check(name, agreement, adam(storage), SHAPES[1], backend(), low)
    others = {
        "rmsprop": aj.rmsprop(1e-3, centered=True, momentum=0.9, storage="int8"),
        "sgd": aj.sgd(1e-3, momentum=0.9, storage="int8"),
        "lion": aj.lion(1e-3, storage="int8"),
        "adamw": aj.adamw(1e-3, weight_decay=0.1, storage="int8"),
    }
    for name, tx in others.items():
        report.check(f"agree {name} int8 {SHAPES[1]}", agreement, tx, SHAPES[1], backend())

    if not rehearse:
        for storage in ("int8", "int8+int16", "float32"):
            for height, warps in TILES[3:]:
                name = f"time {storage} tiles {height} rows, {warps} warps"
                used = backend(height, warps)
                report.check(name, timing, adam(storage), large, used, copied=copied)
        for used in (None, backend()):
            name = f"time int8, bfloat16 parameters, {'tiles' if used else 'whole'}"
            report.check(name, timing, adam("int8"), large, used, low, copied)
    failed = [each["name"] for each in report.found["checks"] if "error" in each]
    print(f"{report.found['seconds']} s; failed: {failed or 'none'}", flush=True)


if __name__ == "__main__":
    main()

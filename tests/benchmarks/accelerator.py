"""Optimizers on the accelerator at hand, beside optax and PyTorch in the same process.

    python tests/benchmarks/accelerator.py --json h100.json            # at most 8 minutes
    python tests/benchmarks/accelerator.py --parts array agreement     # some of it
    python tests/benchmarks/accelerator.py --tables h100.json          # the same again, from the file

Needs jax for the device, optax and this checkout on PYTHONPATH, and no network. PyTorch is measured where
it is installed and sees the device. Everything is written to the JSON file as soon as it is known, and a
part that fails or for which no time is left says so and does not end the rest.

array, gpt, small   Steps of Adam that take over parameters and state, on one array of 134 M, on the 148
                    arrays of a GPT of 124 M, on 1,000 arrays of 64 x 64: the median of rounds of 20 steps,
                    in turns. Bytes are those that must move: parameters, gradients and state are read,
                    parameters and state written, once; their share of the bandwidth of a copy. XLA says
                    temporaries and the number of kernels. "tiles": in one kernel for all of it. With many
                    arrays a step waits for Python, which hands each of them to the compiled program.
training            The whole `train_step` of that GPT, bfloat16 inside, two rows of 1,024 tokens, beside
                    the same step written by hand with optax; peak memory is what the device says, in a
                    process for each.
agreement           The first update beside a CPU's, codes that differ, and whether a second run gives the
                    same bits.
losses              A small language model, 300 steps with each storage, from the same start.
"""

import argparse
import functools
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Peak memory is to be that of the step, and PyTorch needs some too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

PARTS = ("array", "gpt", "training", "agreement", "small", "losses")
INT8_16 = {"mu": "int8", "nu": "int16"}
TILED = ("int8", "int8 + int16")  # Without blocks XLA's own kernels are as good.
STORAGES = {"float32": None, "bfloat16": "bfloat16", "int8": "int8", "int8 + int16": INT8_16}
FACTORED = {"mu": "bfloat16", "nu": "factored"}
ROUNDS, STEPS = 5, 20


def gpt_params(key, *, layers=12, width=768, vocabulary=50_257, length=1024):
    """A GPT-2 of 124 M parameters, in 148 arrays; the head is the embedding."""
    keys = iter(jax.random.split(key, 4 * layers + 2))

    def matrix(*shape):
        return 0.02 * jax.random.normal(next(keys), shape)

    def norm():
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def dense(inputs, outputs):
        return {"kernel": matrix(inputs, outputs), "bias": jnp.zeros(outputs)}

    return {
        "tokens": matrix(vocabulary, width),
        "positions": matrix(length, width),
        "layers": [
            {
                "norm_1": norm(),
                "qkv": dense(width, 3 * width),
                "out": dense(width, width),
                "norm_2": norm(),
                "up": dense(width, 4 * width),
                "down": dense(4 * width, width),
            }
            for _ in range(layers)
        ],
        "norm": norm(),
    }


def gpt_loss(params, tokens):
    """The mean cross-entropy of the next token. Heads are 64 wide."""

    def normal(x, layer):
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
        return y.astype(x.dtype) * layer["scale"] + layer["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    x = params["tokens"][inputs] + params["positions"][: inputs.shape[1]]
    for layer in params["layers"]:
        q, k, v = jnp.split(dense(normal(x, layer["norm_1"]), layer["qkv"]), 3, -1)
        heads = [y.reshape(*y.shape[:2], -1, 64) for y in (q, k, v)]
        attended = jax.nn.dot_product_attention(*heads, is_causal=True)
        x = x + dense(attended.reshape(x.shape), layer["out"])
        x = x + dense(jax.nn.gelu(dense(normal(x, layer["norm_2"]), layer["up"])), layer["down"])
    logits = (normal(x, params["norm"]) @ params["tokens"].T).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def tree_of(name, small):
    """The parameters of a part, of random numbers."""
    key = jax.random.key(0)
    if name == "array":
        shape = (256, 1024) if small else (8192, 16_384)
        return {"array": 0.02 * jax.random.normal(key, shape)}
    if name == "small":
        many = 0.02 * jax.random.normal(key, (20 if small else 1000, 64, 64))
        return {f"{i:04}": x for i, x in enumerate(many)}
    return gpt_params(key, **SMALL_GPT) if small else gpt_params(key)


SMALL_GPT = {"layers": 2, "width": 256, "vocabulary": 512, "length": 64}


# Contenders: each makes a compiled step, and takes it.


class Step:
    """A compiled step that takes over parameters and state, called again and again."""

    def __init__(self, function, carried, gradients):
        begin = time.perf_counter()
        self.compiled = jax.jit(function, donate_argnums=0).lower(carried, gradients).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.carried, self.gradients = carried, gradients

    def __call__(self):
        self.carried = self.compiled(self.carried, self.gradients)

    def wait(self):
        jax.block_until_ready(self.carried)

    def kept(self):
        """Parameters and state."""
        return self.carried

    def facts(self):
        found = self.compiled.memory_analysis()
        state = sum(x.nbytes for x in jax.tree.leaves(self.kept()))
        given = sum(x.nbytes for x in jax.tree.leaves(self.gradients))
        alone = {"compile_seconds": self.compile_seconds} if self.compiled_alone else {}
        return alone | {
            "floor_bytes": 2 * state + given,
            "temporary_bytes": found.temp_size_in_bytes,
            "kernels": kernels(self.compiled.as_text()),
        }


class TrainStep(Step):
    """The same by `train_step`, of a loss whose gradients are those given."""

    def __init__(self, tx, params, gradients, **options):
        step = aj.train_step(linear, metrics=(), **options)
        self.carried, self.gradients = aj.TrainState.create(params, tx), gradients
        begin = time.perf_counter()
        self.compiled = step.lower(self.carried, gradients).compile()
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self):
        self.carried, _ = self.compiled(self.carried, self.gradients)

    def wait(self):
        jax.block_until_ready(self.carried.params)

    def kept(self):
        return self.carried.params, self.carried.opt_state


def linear(params, gradients):
    """A loss with these gradients; where nobody asks for it, it is not computed."""
    products = jax.tree.map(lambda x, g: jnp.sum(x * g.astype(x.dtype)), params, gradients)
    return sum(x.astype(jnp.float32) for x in jax.tree.leaves(products))


def by_optax(tx, params, gradients):
    def step(carried, gradients):
        params, state = carried
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return Step(step, (params, tx.init(params)), gradients)


class TorchStep:
    """PyTorch's Adam, fused."""

    def __init__(self, params, gradients):
        import torch

        self.torch, self.params = torch, []
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True)
        for x, g in leaves:
            param = torch.nn.Parameter(torch.tensor(np.asarray(x), device="cuda"))
            param.grad = torch.tensor(np.asarray(g), device="cuda")
            self.params.append(param)
        self.optimizer = torch.optim.Adam(self.params, lr=1e-3, fused=True)

    def __call__(self):
        self.optimizer.step()

    def wait(self):
        self.torch.cuda.synchronize()

    def facts(self):
        return {"floor_bytes": 28 * sum(x.numel() for x in self.params)}


def contenders(params, gradients, with_torch, with_tiles):
    """For each name what makes the step; buffers are its own."""
    bfloat16 = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))

    def ours(storage, low=False, wrap=lambda tx: tx, **options):
        make = bfloat16 if low else functools.partial(jax.tree.map, jnp.copy)
        tx = wrap(aj.adam(1e-3, storage=storage))
        return TrainStep(tx, make(params), bfloat16(gradients) if low else gradients, **options)

    def theirs(**options):
        return by_optax(optax.adam(1e-3, **options), jax.tree.map(jnp.copy, params), gradients)

    found = {
        "optax, float32": theirs,
        "optax, bfloat16 mu": functools.partial(theirs, mu_dtype=jnp.bfloat16),
    }
    for name, storage in STORAGES.items():
        found[name] = functools.partial(ours, storage)
        if with_tiles and name in TILED:
            found[f"{name}, tiles"] = functools.partial(ours, storage, tiles=True)
    found["bfloat16 + factored"] = functools.partial(ours, FACTORED)
    found["int8, bfloat16 weights"] = functools.partial(ours, "int8", low=True)
    if with_tiles:
        found["int8, bfloat16 weights, tiles"] = functools.partial(
            ours, "int8", low=True, tiles=True
        )
    weights_24 = functools.partial(aj.compensate, correction="int8")
    found["int8, 24-bit weights"] = functools.partial(ours, "int8", low=True, wrap=weights_24)
    if with_torch:
        found["torch fused, float32"] = functools.partial(TorchStep, params, gradients)
    return found


def kernels(text):
    """How many kernels a compiled step starts: what its entry computation calls."""
    entry = text[text.index("\nENTRY") :]
    called = re.findall(
        r"= .*? (fusion|custom-call|copy|copy-start|reduce|while|call|sort|scatter)\(", entry
    )
    return len(called)


# The parts


class Report:
    """What was found, in a JSON file that is always whole."""

    def __init__(self, path, seconds):
        self.path, self.deadline = path, time.monotonic() + seconds
        device = jax.devices()[0]
        self.found = {
            "device": device.device_kind,
            "platform": device.platform,
            "client": device.client.platform_version.split(chr(10))[0],
            "jax": jax.__version__,
            "optax": optax.__version__,
            "python": sys.version.split()[0],
        }

    def left(self):
        return self.deadline - time.monotonic()

    def add(self, part, name, row):
        self.found.setdefault(part, {})[name] = row
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(f"{part:10} {name:32} {json.dumps(shown)}", flush=True)
        self.write()

    def write(self):
        if self.path:
            self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def attempt(report, part, name, function, least=20.0):
    """What a function returns; None, with the reason in the report, if it fails or time is short."""
    if report.left() < least:
        report.add(part, name, {"left out": "no time was left"})
        return None
    try:
        return function()
    except Exception as error:
        traceback.print_exc(limit=-4)
        report.add(part, name, {"failed": f"{type(error).__name__}: {error}"[:300]})
        return None


def made_of(report, part, makes, *, at_once):
    """The steps that could be made, in the order of their names."""
    with ThreadPoolExecutor(len(makes) if at_once else 1) as pool:
        made = pool.map(lambda name: attempt(report, part, name, makes[name]), makes)
        found = {name: step for name, step in zip(makes, made, strict=True) if step is not None}
    for step in found.values():
        step.compiled_alone = not at_once
    return found


def copy_bandwidth(small):
    """Bytes per second, read and written, of a copy on the device."""
    x = jnp.ones(2**20 if small else 2**28)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    seconds = []
    for _ in range(ROUNDS):
        x = jax.block_until_ready(copy(x))
        begin = time.perf_counter()
        for _ in range(STEPS):
            x = copy(x)
        jax.block_until_ready(x)
        seconds.append((time.perf_counter() - begin) / STEPS)
    return 2 * x.nbytes / statistics.median(seconds)


def timed(steps):
    """Of each step the seconds that it takes, one number per round, in turns."""
    seconds = {name: [] for name in steps}
    names = list(steps)
    for i in range(ROUNDS):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            step = steps[name]
            step()
            step.wait()
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            step.wait()
            seconds[name].append((time.perf_counter() - begin) / STEPS)
    return seconds


def measure_tree(report, part, options):
    params = tree_of(part, options.small)
    gradients = jax.tree.map(lambda x: 0.1 * x + 1e-3, params)
    size = sum(x.size for x in jax.tree.leaves(params))
    makes = contenders(params, gradients, options.torch, options.tiles)
    if part == "small":
        makes = {k: x for k, x in makes.items() if "weights" not in k and "factored" not in k}
        # What one kernel for all of them would bring.
        whole = [{"all": jnp.concatenate(list(x.values()))} for x in (params, gradients)]
        makes["optax, the same numbers in one array"] = lambda: by_optax(optax.adam(1e-3), *whole)
    # Where it is told how long compilation takes, they are compiled one by one.
    made = made_of(report, part, makes, at_once=part != "gpt")
    seconds = timed(made)
    base = seconds.get("optax, float32")
    for name, step in made.items():
        row = step.facts() | {"seconds": statistics.median(seconds[name]), "parameters": size}
        row["copy_share"] = row["floor_bytes"] / row["seconds"] / report.found["copy_bandwidth"]
        if base:
            ratios = [x / y for x, y in zip(seconds[name], base, strict=True)]
            row["to_optax"] = statistics.median(ratios)
        report.add(part, name, row)


def gpt_batch(small):
    rows, length = (2, 64) if small else (2, 1024)
    tokens = np.random.default_rng(0).integers(512 if small else 50_257, size=(rows, length + 1))
    return jnp.asarray(tokens, jnp.int32)


class HandWritten(Step):
    """The training step as everybody writes it."""

    def __init__(self, params, batch):
        tx = optax.adam(1e-3)

        def loss(params, batch):
            low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
            return gpt_loss(low, batch)

        def step(carried, batch):
            params, state, _ = carried
            value, gradients = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, value

        super().__init__(step, (params, tx.init(params), jnp.zeros(())), batch)


class OurTraining(TrainStep):
    """The same by `train_step`."""

    def __init__(self, params, batch, storage=None, low=False, **options):
        if low:
            params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        step = aj.train_step(
            gpt_loss, compute_dtype=None if low else jnp.bfloat16, metrics=("loss",), **options
        )
        self.gradients = batch
        self.carried = aj.TrainState.create(params, aj.adam(1e-3, storage=storage))
        begin = time.perf_counter()
        self.compiled = step.lower(self.carried, batch).compile()
        self.compile_seconds = time.perf_counter() - begin


def trainings(with_tiles):
    found = {"optax by hand": HandWritten}
    for name, storage in STORAGES.items():
        found[name] = functools.partial(OurTraining, storage=storage)
        if with_tiles and name in TILED:
            found[f"{name}, tiles"] = functools.partial(OurTraining, storage=storage, tiles=True)
    found["int8, bfloat16 weights"] = functools.partial(OurTraining, storage="int8", low=True)
    return found


PEAKS = ("optax by hand", "float32", "int8", "int8, tiles")


def peak(name, options):
    """Prints the peak of this process's memory on the device, after steps of one training."""
    step = trainings(options.tiles)[name](tree_of("gpt", options.small), gpt_batch(options.small))
    before = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    for _ in range(3):
        step()
    step.wait()
    stats = jax.devices()[0].memory_stats() or {}
    print("PEAK", json.dumps({"at_start": before, "peak": stats.get("peak_bytes_in_use")}))


def measure_peaks(report, options):
    """The peaks, in processes side by side: what they take is no time."""
    command = [sys.executable, __file__, *(["--small"] if options.small else [])]
    command += [] if options.tiles else ["--no-tiles"]
    names = [x for x in PEAKS if options.tiles or "tiles" not in x]
    running = {
        name: subprocess.Popen([*command, "--peak", name], stdout=subprocess.PIPE, text=True)
        for name in names
    }
    found = {}
    for name, process in running.items():
        try:
            output, _ = process.communicate(timeout=max(5.0, min(150.0, report.left() - 30)))
        except subprocess.TimeoutExpired:
            process.kill()
            continue
        lines = [line for line in output.splitlines() if line.startswith("PEAK")]
        if lines:
            found[name] = json.loads(lines[0].removeprefix("PEAK "))
    return found


def measure_training(report, options):
    peaks = attempt(report, "training", "peaks", lambda: measure_peaks(report, options)) or {}
    params, batch = tree_of("gpt", options.small), gpt_batch(options.small)
    makes = {
        name: functools.partial(make, jax.tree.map(jnp.copy, params), batch)
        for name, make in trainings(options.tiles).items()
    }
    made = made_of(report, "training", makes, at_once=True)
    seconds = timed(made)
    base = seconds.get("optax by hand")
    for name, step in made.items():
        row = step.facts() | {"seconds": statistics.median(seconds[name]), **peaks.get(name, {})}
        del row["floor_bytes"]
        if base:
            ratios = [x / y for x, y in zip(seconds[name], base, strict=True)]
            row["to_optax"] = statistics.median(ratios)
        report.add("training", name, row)


def measure_agreement(report, options):
    """The same steps on the device and on a CPU."""
    shapes = {"rows of blocks": (512, 1024), "ragged": (37, 700), "4-D": (2, 3, 16, 512)}
    host = jax.devices("cpu")[0]

    def run(shape, storage, device, **kinds):
        keys = jax.random.split(jax.random.key(1), 4)
        with jax.default_device(host):
            params = np.asarray(jax.random.normal(keys[0], shape))
            wide = np.asarray(jnp.exp(2 * jax.random.normal(keys[1], shape)))
            gradients = [np.asarray(jax.random.normal(k, shape)) * wide for k in keys[1:]]
        step = aj.train_step(linear, metrics=(), **kinds)
        with jax.default_device(device):
            state = aj.TrainState.create(jnp.asarray(params), aj.adam(1e-3, storage=storage))
            after = []
            for gradient in gradients:
                state, _ = step(state, jnp.asarray(gradient))
                after.append(np.asarray(state.params))
            return params, after, jax.device_get(jax.tree.leaves(state.opt_state))

    ways = {"": {}, ", tiles": {"tiles": True}} if options.tiles else {"": {}}
    for where, shape in shapes.items():
        for name, storage in STORAGES.items():
            for suffix, kinds in ways.items() if name in TILED else [("", {})]:
                device = jax.devices()[0]
                row = attempt(
                    report, "agreement", f"{name}{suffix}, {where}",
                    functools.partial(compared, run, shape, storage, host, device, kinds), 10.0,
                )  # fmt: skip
                if row is not None:
                    report.add("agreement", f"{name}{suffix}, {where}", row)


def compared(run, shape, storage, host, device, kinds):
    params, ours, state = run(shape, storage, device, **kinds)
    _, again, state_again = run(shape, storage, device, **kinds)
    _, theirs, state_there = run(shape, storage, host)
    step = np.abs(theirs[0] - params).max()
    codes = [
        (x.astype(np.int64), y.astype(np.int64))
        for x, y in zip(state, state_there, strict=True)
        if np.ndim(x) and np.issubdtype(np.asarray(x).dtype, np.integer)
    ]
    return {
        "first_update_error": float(np.abs(ours[0] - theirs[0]).max() / step),
        "third_update_error": float(np.abs(ours[2] - theirs[2]).max() / step),
        "codes_differ_at_most": max([int(np.abs(x - y).max()) for x, y in codes], default=0),
        "codes_that_differ": max([float(np.mean(x != y)) for x, y in codes], default=0.0),
        "same_bits_again": all(
            np.array_equal(x, y, equal_nan=True)
            for x, y in zip([*ours, *state], [*again, *state_again], strict=True)
        ),
        "finite": bool(all(np.isfinite(x).all() for x in ours)),
    }


def measure_losses(report, options):
    """A small language model, from the same start with the same batches."""
    problem = aj.problems.language_model(layers=2, width=64 if options.small else 256)
    steps = 10 if options.small else 300
    for name, storage in STORAGES.items():
        for tiles in (False, True) if options.tiles and name in TILED else (False,):
            label = f"{name}, tiles" if tiles else name
            kinds = {"tiles": True} if tiles else {}

            def run(storage=storage, kinds=kinds):
                params = problem.init(jax.random.key(0))
                step = aj.train_step(problem.loss, metrics=("loss",), **kinds)
                state = aj.TrainState.create(params, aj.adam(3e-3, storage=storage))
                for key in jax.random.split(jax.random.key(1), steps):
                    state, metrics = step(state, key)
                return {"training loss": float(metrics["loss"]),
                        "validation loss": float(problem.evaluate(state.params))}  # fmt: skip

            row = attempt(report, "losses", label, run)
            if row is not None:
                report.add("losses", label, row)


# Tables


def tables(found):
    """What was found, in Markdown."""
    versions = f"jax {found['jax']}, optax {found['optax']}"
    yield f"{found['device']}, {versions}; a copy moves {found['copy_bandwidth'] / 1e12:.2f} TB/s."
    columns = {
        "ms": lambda row: f"{1e3 * row['seconds']:.3f}",
        "to optax": lambda row: f"{row['to_optax']:.2f}" if "to_optax" in row else "–",
        "of a copy's bandwidth": lambda row: f"{row['copy_share']:.0%}",
        "bytes/parameter": lambda row: f"{row['floor_bytes'] / row['parameters']:.2f}",
        "temporaries": lambda row: _or(
            row, "temporary_bytes", lambda x: f"{x / row['parameters']:.2f}"
        ),
        "kernels": lambda row: _or(row, "kernels", str),
        "compile, s": lambda row: _or(row, "compile_seconds", lambda x: f"{x:.1f}"),
    }
    for part in ("array", "gpt", "small"):
        yield from table(found, part, columns)
    columns = {
        "ms": columns["ms"],
        "to optax": columns["to optax"],
        "peak, GB": lambda row: _or(row, "peak", lambda x: f"{x / 1e9:.2f}"),
        "temporaries, GB": lambda row: f"{row['temporary_bytes'] / 1e9:.2f}",
    }
    yield from table(found, "training", columns)
    columns = {
        name.replace("_", " "): functools.partial(lambda name, row: f"{row[name]:.2g}", name)
        for name in ("first_update_error", "third_update_error", "codes_that_differ")
    } | {
        name.replace("_", " "): functools.partial(lambda name, row: str(row[name]), name)
        for name in ("codes_differ_at_most", "same_bits_again", "finite")
    }
    yield from table(found, "agreement", columns)
    columns = {
        name: functools.partial(lambda name, row: f"{row[name]:.4f}", name)
        for name in ("training loss", "validation loss")
    }
    yield from table(found, "losses", columns)


def _or(row, name, shown):
    return shown(row[name]) if row.get(name) is not None else "–"


def table(found, part, columns):
    if part not in found:
        return
    yield ""
    yield f"| {part} | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in found[part].items():
        reason = row.get("left out") or row.get("failed")
        cells = (
            [reason, *[""] * (len(columns) - 1)] if reason else [f(row) for f in columns.values()]
        )
        yield f"| {name} | {' | '.join(cells)} |"


MEASURES = {
    "training": measure_training,
    "agreement": measure_agreement,
    "losses": measure_losses,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write what is found")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="after these, begin nothing new"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--no-tiles", action="store_false", dest="tiles", help="leave tiles out")
    parser.add_argument("--tables", type=Path, help="print the tables of a JSON file, and end")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tables:
        print("\n".join(tables(json.loads(options.tables.read_text()))))
        return
    if options.peak:
        peak(options.peak, options)
        return
    options.torch = importlib.util.find_spec("torch") is not None and jax.default_backend() == "gpu"
    report = Report(options.json, options.seconds)
    report.found["copy_bandwidth"] = copy_bandwidth(options.small)
    print(json.dumps(report.found), flush=True)
    for part in options.parts:
        function = MEASURES.get(part, functools.partial(measure_tree, part=part))
        attempt(report, part, "all", lambda f=function: f(report, options=options), 5.0)
    report.write()
    print("\n".join(tables(report.found)))


if __name__ == "__main__":
    main()

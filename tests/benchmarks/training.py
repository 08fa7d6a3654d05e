"""`train_step` and the same step written by hand with optax, side by side in one process.

    python tests/benchmarks/training.py

Two networks, the digits' and a decoder; each step is compiled whole, with its state donated. Prints
ratios, ours over the hand-written step: below 1, ours is faster or smaller. Rounds alternate which of
the two comes first; a ratio is the median of the ratios of the rounds, with their quartiles. Times to
build are processor time, of tracing and of compilation, in empty caches. `--loop` prints what Python
costs in a step of one small array, by hand, in `train_step` and in `fit`, and what a history weighs.

Then Python's share: steps of 1 and of 100 arrays with three numbers in each, and a small network, with
nothing new and with a new optimizer in every step for another learning rate.
"""

import argparse
import itertools
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj


def digits(key):
    """The network of the examples: two convolutions and a dense layer."""
    keys = jax.random.split(key, 3)
    he_normal = jax.nn.initializers.he_normal()
    params = {
        "first": {"kernel": he_normal(keys[0], (3, 3, 1, 16)), "bias": jnp.zeros(16)},
        "second": {"kernel": he_normal(keys[1], (3, 3, 16, 32)), "bias": jnp.zeros(32)},
        "output": {"kernel": he_normal(keys[2], (512, 10)), "bias": jnp.zeros(10)},
    }

    def loss(params, batch):
        images, labels = batch
        layout = ("NHWC", "HWIO", "NHWC")
        for name, stride in (("first", 1), ("second", 2)):
            layer = params[name]
            images = jax.lax.conv_general_dilated(
                images, layer["kernel"], (stride, stride), "SAME", dimension_numbers=layout
            )
            images = jax.nn.relu(images + layer["bias"])
        logits = images.reshape(len(images), -1) @ params["output"]["kernel"]
        logits = logits + params["output"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    images = jax.random.normal(keys[0], (64, 8, 8, 1))
    return params, loss, (images, jax.random.randint(keys[1], (64,), 0, 10))


def decoder(key, *, layers=4, width=128, vocabulary=256, length=64):
    """A small transformer over bytes."""
    keys = iter(jax.random.split(key, 4 * layers + 4))

    def matrix(*shape):
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[0])

    params = {
        "embedding": matrix(vocabulary, width),
        "positions": matrix(length, width),
        "layers": [
            {
                "scale_1": jnp.ones(width),
                "qkv": matrix(width, 3 * width),
                "out": matrix(width, width),
                "scale_2": jnp.ones(width),
                "up": matrix(width, 4 * width),
                "down": matrix(4 * width, width),
            }
            for _ in range(layers)
        ],
        "head": matrix(width, vocabulary),
    }

    def normal(x, scale):
        return scale * x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)

    def loss(params, tokens):
        x = params["embedding"][tokens[:, :-1]] + params["positions"]
        for layer in params["layers"]:
            q, k, v = jnp.split(normal(x, layer["scale_1"]) @ layer["qkv"], 3, -1)
            heads = [y.reshape(*y.shape[:2], 4, -1) for y in (q, k, v)]
            attended = jax.nn.dot_product_attention(*heads, is_causal=True)
            x = x + attended.reshape(x.shape) @ layer["out"]
            x = x + jax.nn.gelu(normal(x, layer["scale_2"]) @ layer["up"]) @ layer["down"]
        logits = x @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return params, loss, jax.random.randint(next(keys), (8, length + 1), 0, vocabulary)


class Ours:
    """A step of `train_step`."""

    def __init__(self, params, loss, batch):
        self.state, self.batch = aj.TrainState.create(params, aj.adam(1e-3)), batch
        self.step = aj.train_step(loss)
        self.lower = lambda: self.step.lower(self.state, self.batch)

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch)
        return metrics["loss"]


class NewRate(Ours):
    """The same with another learning rate in every step."""

    rate = 1e-3

    def __call__(self):
        self.rate *= 1.0001
        self.state = self.state.replace(tx=aj.adam(self.rate))
        return super().__call__()


class ByHand:
    """The step that users write around optax."""

    def __init__(self, params, loss, batch):
        tx = optax.adam(1e-3)

        def step(params, opt_state, batch):
            value, gradients = jax.value_and_grad(loss)(params, batch)
            updates, opt_state = tx.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.params = jax.tree.map(jnp.copy, params)
        self.opt_state, self.batch = tx.init(params), batch
        self.lower = lambda: self.step.lower(self.params, self.opt_state, self.batch)

    def __call__(self):
        self.params, self.opt_state, loss = self.step(self.params, self.opt_state, self.batch)
        return loss


def seconds_per_step(run, calls):
    start = time.perf_counter()
    for _ in range(calls):
        loss = run()
    loss.block_until_ready()
    return (time.perf_counter() - start) / calls


def build_seconds(kind, problem):
    run = kind(*problem)
    jax.clear_caches()
    start = time.process_time()
    run.lower().compile()
    return time.process_time() - start


def ratios(measure, rounds, one=Ours, other=ByHand):
    """What measure gives for one over what it gives for the other, in turns."""
    found, values = [], {one: [], other: []}
    for turn in range(rounds):
        order = (one, other) if turn % 2 else (other, one)
        sample = {kind: measure(kind) for kind in order}
        found.append(sample[one] / sample[other])
        for kind, value in sample.items():
            values[kind].append(value)
    low, middle, high = statistics.quantiles(found, n=4)
    medians = [1e3 * statistics.median(values[kind]) for kind in (one, other)]
    return f"{middle:6.3f} ({low:.3f}-{high:.3f})   {medians[0]:9.3f} {medians[1]:9.3f} ms"


def tiny(key, arrays):
    """So little to compute that Python's share is what takes time."""
    params = {f"w{i}": jnp.ones(3) for i in range(arrays)}

    def loss(params, batch):
        return sum(jnp.sum(jnp.square(x)) for x in params.values()) * batch

    return params, loss, jnp.ones(())


def small(key, width=64):
    """A network of two layers, and a batch of 64 points."""
    keys = jax.random.split(key, 3)
    params = {
        "hidden": jax.random.normal(keys[0], (16, width)) / 4,
        "bias": jnp.zeros(width),
        "output": jax.random.normal(keys[1], (width, 1)) / 8,
    }

    def loss(params, batch):
        hidden = jnp.tanh(batch @ params["hidden"] + params["bias"])
        return jnp.mean(jnp.square(hidden @ params["output"] - 1))

    return params, loss, jax.random.normal(keys[2], (64, 16))


def share_of_python(rounds):
    problems = {
        "1 array": (lambda key: tiny(key, 1), 50),
        "100 arrays": (lambda key: tiny(key, 100), 4),
        "small": (small, 20),
    }
    for name, (make, calls) in problems.items():
        problem = make(jax.random.key(0))
        runs = {kind: kind(*problem) for kind in (Ours, ByHand, NewRate)}
        for run in runs.values():
            seconds_per_step(run, calls)

        def step_time(kind, runs=runs, calls=calls):
            return seconds_per_step(runs[kind], calls)

        print(f"{name:10} step            {ratios(step_time, rounds)}")
        print(f"{name:10} a new rate      {ratios(step_time, rounds, NewRate, Ours)}", flush=True)


def loop_costs(rounds, steps=1000):
    """What Python does in a step of a network of one array, by hand, in `train_step` and in `fit`.

    Microseconds of this thread's processor per step, with the three metrics that are the default, and
    the ratios to the first; and the bytes that the process grows by with each step of `fit`.
    """

    def loss(params, batch):
        return jnp.sum(jnp.square(params - batch))

    params, batch = jnp.ones(3), jnp.zeros(3)
    by_hand, ours = ByHand(params, loss, batch), Ours(params, loss, batch)

    def fitted(count=steps):
        ours.state, _ = aj.fit(ours.state, ours.step, itertools.repeat(batch), steps=count)

    def timed(run):
        start = time.thread_time()
        run()
        return 1e6 * (time.thread_time() - start) / steps

    runs = {
        "by hand": lambda: seconds_per_step(by_hand, steps),
        "train_step": lambda: seconds_per_step(ours, steps),
        "fit": fitted,
    }
    for run in runs.values():
        run()  # Compiles.
    samples = [[timed(run) for run in runs.values()] for _ in range(rounds)]
    for place, name in enumerate(runs):
        middle = statistics.median(sample[place] for sample in samples)
        ratio = statistics.median(sample[place] / sample[0] for sample in samples)
        print(f"{name:12} one array       {ratio:6.2f}   {middle:9.1f} us", flush=True)
    count = 50_000
    before = resident_bytes()
    _, history = aj.fit(ours.state, ours.step, itertools.repeat(batch), steps=count)
    grown = (resident_bytes() - before) / count
    kept = sum(values.nbytes for values in history.values()) / count
    print(f"{'fit':12} bytes per step  {grown:6.1f}   {kept:9.1f} in its history", flush=True)


def resident_bytes():
    """How much memory this process has, on Linux."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="pairs of timings of steps")
    parser.add_argument("--builds", type=int, default=6, help="pairs of timings of compilations")
    parser.add_argument("--loop", action="store_true", help="only what Python costs in a tiny step")
    arguments = parser.parse_args()
    if arguments.loop:
        return loop_costs(arguments.rounds)
    for name, make, calls in (("digits", digits, 20), ("decoder", decoder, 4)):
        problem = make(jax.random.key(0))
        runs = {kind: kind(*problem) for kind in (Ours, ByHand)}
        compiled = {kind: run.lower().compile() for kind, run in runs.items()}
        memory = [compiled[kind].memory_analysis().temp_size_in_bytes for kind in (Ours, ByHand)]
        np.testing.assert_allclose(runs[Ours](), runs[ByHand](), rtol=1e-5)
        np.testing.assert_allclose(runs[Ours](), runs[ByHand](), rtol=1e-3)

        def step_time(kind, runs=runs, calls=calls):
            return seconds_per_step(runs[kind], calls)

        def build_time(kind, problem=problem):
            return build_seconds(kind, problem)

        print(f"{name:8} step            {ratios(step_time, arguments.rounds)}")
        print(f"{name:8} trace + compile {ratios(build_time, arguments.builds)}")
        print(f"{name:8} temporaries     {memory[0] / memory[1]:6.3f}   {memory} bytes", flush=True)
    share_of_python(arguments.rounds)


if __name__ == "__main__":
    main()

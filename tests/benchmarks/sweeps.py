"""64 learning rates and 4 seeds of a small network: `sweep`, and the loops that people write.

    python tests/benchmarks/sweeps.py

A network with one hidden layer on scikit-learn's digits, 300 steps of Adam. Compared, in one process
and with the same weights and batches, are

* `sweep`: one call for all 256 runs, compilation included; and called again, with other learning rates;
* a loop that builds an optax optimizer for each learning rate and seed, or for each learning rate, and
  compiles with it either a run, all of its steps in a `scan`, or a step; measured on a sample of the
  learning rates and scaled;
* one compiled step, with the learning rate as an argument, called in a loop over runs and steps;
* one compiled run called in a loop over the runs.

The final losses must agree. Prints seconds and ratios, the medians of several rounds that take turns.
Needs the `examples` extra.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import adaptive_jax as aj

RATES = np.logspace(-4, -1, 64)
SEEDS = 4
STEPS = 300
BATCH = 64

pixels, digits = load_digits(return_X_y=True)
images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits, jnp.int32)
ORDER = jnp.asarray(np.random.default_rng(0).integers(len(pixels), size=(STEPS, BATCH)))


def init(seed):
    # One draw for both arrays: each draw takes half a second to compile.
    numbers = jax.random.normal(jax.random.key(seed), (64 * 32 + 32 * 10,))
    hidden, output = jnp.split(numbers, [64 * 32])
    return {
        "hidden": hidden.reshape(64, 32) * 64**-0.5,
        "output": output.reshape(32, 10) * 32**-0.5,
    }


def loss(params, images, labels):
    logits = jax.nn.relu(images @ params["hidden"]) @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(tx, params, state, indices):
    gradients = jax.grad(loss)(params, images[indices], labels[indices])
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def train(learning_rate, seed, adam=aj.adam):
    """A whole run."""
    tx, params = adam(learning_rate), init(seed)

    def body(carry, indices):
        return train_step(tx, *carry, indices), None

    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), ORDER)
    return loss(params, images, labels)


final_loss = jax.jit(loss)


def run(step, tx, seed):
    """A run as a loop over its steps."""
    params = init(seed)
    state = tx.init(params)
    for indices in ORDER_ON_HOST:
        params, state = step(tx, params, state, indices)
    return float(final_loss(params, images, labels))


ORDER_ON_HOST = np.asarray(ORDER)


def optax_step(tx):
    """A step that holds the optimizer, compiled at its first call."""
    compiled = jax.jit(lambda params, state, indices: train_step(tx, params, state, indices))
    return lambda _, *arguments: compiled(*arguments)


def by_sweep(rates):
    return aj.sweep(train, learning_rate=rates, seeds=SEEDS, progress=False).objective


def optax_run(rate):
    return jax.jit(lambda seed: train(rate, seed, optax.adam))


def run_per_setting_and_seed(rates):
    return [[optax_run(rate)(seed) for seed in range(SEEDS)] for rate in rates]


def run_per_setting(rates):
    return [[compiled(seed) for seed in range(SEEDS)] for compiled in map(optax_run, rates)]


def step_per_setting_and_seed(rates):
    return [
        [run(optax_step(tx := optax.adam(rate)), tx, seed) for seed in range(SEEDS)]
        for rate in rates
    ]


def step_per_setting(rates):
    losses = []
    for rate in rates:
        tx = optax.adam(rate)
        step = optax_step(tx)
        losses.append([run(step, tx, seed) for seed in range(SEEDS)])
    return losses


one_step = jax.jit(train_step, donate_argnums=(1, 2))
one_run = jax.jit(train)


def one_compiled_step(rates):
    return [[run(one_step, aj.adam(rate), seed) for seed in range(SEEDS)] for rate in rates]


def one_compiled_run(rates):
    return [[one_run(rate, seed).block_until_ready() for seed in range(SEEDS)] for rate in rates]


def seconds(function, rates):
    """How long the losses of these learning rates take, scaled to all of them; and the losses."""
    start = time.perf_counter()
    losses = np.asarray(function(rates))
    return (time.perf_counter() - start) * len(RATES) / len(rates), losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=2, help="learning rates of the slow loops")
    arguments = parser.parse_args()
    sample = RATES[:: len(RATES) // arguments.sample]
    init(0)  # its programs are common to all
    times = {}
    for _ in range(arguments.rounds):
        _, losses = result = seconds(by_sweep, RATES)
        found = {
            "sweep": result,
            "sweep, called again": seconds(by_sweep, RATES / 1.5),
            "optax, a run compiled per rate and seed": seconds(run_per_setting_and_seed, sample),
            "optax, a run compiled per rate": seconds(run_per_setting, sample),
            "optax, a step compiled per rate and seed": seconds(step_per_setting_and_seed, sample),
            "optax, a step compiled per rate": seconds(step_per_setting, sample),
        }
        one_compiled_step(RATES[:1])
        one_compiled_run(RATES[:1])
        found["one compiled step in a loop"] = seconds(one_compiled_step, RATES[::8])
        found["one compiled run in a loop"] = seconds(one_compiled_run, RATES)
        for name, (taken, values) in found.items():
            times.setdefault(name, []).append(taken)
            if "again" not in name:
                stride = len(losses) // len(values)
                calm = RATES[::stride] < 0.01  # above, rounding alone leads elsewhere
                np.testing.assert_allclose(
                    values[calm], losses[::stride][calm], rtol=2e-4, err_msg=name
                )
        jax.clear_caches()
    print(
        "64 learning rates, 4 seeds, 300 steps     seconds   over sweep   over sweep called again"
    )
    for name, each in times.items():
        ratios = (
            statistics.median(a / b for a, b in zip(each, times[base], strict=True))
            for base in ("sweep", "sweep, called again")
        )
        print(f"{name:40} {statistics.median(each):8.2f} {next(ratios):10.1f} {next(ratios):16.1f}")


if __name__ == "__main__":
    main()

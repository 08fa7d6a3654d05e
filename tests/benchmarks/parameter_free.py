"""Parameter-free and schedule-free optimizers beside optax's: steps, and tracing with compiling.

    python tests/benchmarks/parameter_free.py                 # all: some minutes on a quiet machine
    python tests/benchmarks/parameter_free.py --names prodigy dog --rounds 20
    python tests/benchmarks/parameter_free.py --arrays 100 300 --no-step

Both libraries run through the same code, interleaved: a round measures each once, in turns first. A ratio
is the median of the ratios of the rounds, ours over optax's. Steps are those of the update with
`optax.apply_updates`, jitted and donated, 3 million parameters in 20 arrays. Tracing and compiling count
the seconds that the process spent on all processors, with every cache of JAX emptied before; `--clock
processor` does so for steps, on a machine that is busy otherwise.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import adaptive_jax as aj

PAIRS = {
    "prodigy": (aj.prodigy, contrib.prodigy),
    "dadapt_adamw": (aj.dadapt_adamw, contrib.dadapt_adamw),
    "dog": (aj.dog, contrib.dog),
    "dowg": (aj.dowg, contrib.dowg),
    "cocob": (aj.cocob, contrib.cocob),
    "mechanize": (lambda: aj.mechanize(aj.sgd(1.0)), lambda: contrib.mechanize(optax.sgd(1.0))),
    "polyak_sgd": (aj.polyak_sgd, optax.polyak_sgd),
    "momo": (aj.momo, contrib.momo),
    "momo_adam": (aj.momo_adam, contrib.momo_adam),
    "schedule_free_sgd": (aj.schedule_free_sgd, contrib.schedule_free_sgd),
    "schedule_free_adamw": (aj.schedule_free_adamw, contrib.schedule_free_adamw),
}


def tree(arrays: int, size: int) -> dict[str, jax.Array]:
    """So many matrices, of so many numbers all together."""
    side = round((size / arrays) ** 0.5)
    rng = np.random.default_rng(0)
    return {f"w{i}": jnp.asarray(rng.normal(size=(side, side)), jnp.float32) for i in range(arrays)}


def stepper(tx, params):
    """A function that takes a step and waits for it, with a state of its own."""
    value = jnp.float32(1.0)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params, value=value)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    gradients = jax.tree.map(lambda x: 0.1 * x, params)
    # A foreign `init` aliases the parameters, which are donated.
    held = [jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, tx.init(params))]

    def run():
        held[:] = jax.block_until_ready(jitted(*held, gradients))

    return run


def steps(name, rounds, clock):
    """The median times of a step, and of their ratio."""
    params = tree(20, 3_000_000)
    runs = [stepper(optax.with_extra_args_support(make()), params) for make in PAIRS[name]]
    for run in runs * 3:
        run()
    times = []
    for each in range(rounds):
        row = [0.0, 0.0]
        for which in (0, 1) if each % 2 else (1, 0):
            start = clock()
            for _ in range(3):
                runs[which]()
            row[which] = (clock() - start) / 3
        times.append(row)
    ours, theirs = (statistics.median(row[i] for row in times) for i in (0, 1))
    return ours, theirs, statistics.median(row[0] / row[1] for row in times)


def builds(name, arrays, rounds):
    """The median processor times of tracing and compiling, and of their ratio."""
    params = jax.eval_shape(lambda: tree(arrays, 64 * arrays))
    value = jax.ShapeDtypeStruct((), jnp.float32)

    def build(make):
        tx = optax.with_extra_args_support(make())
        state = jax.eval_shape(tx.init, params)
        jax.clear_caches()
        start = time.process_time()
        jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v)).trace(
            params, state, params, value
        ).lower().compile()
        return time.process_time() - start

    rows = [[build(make) for make in PAIRS[name]] for _ in range(rounds)]
    ours, theirs = (statistics.median(row[i] for row in rows) for i in (0, 1))
    return ours, theirs, statistics.median(row[0] / row[1] for row in rows)


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", nargs="*", default=list(PAIRS))
    parser.add_argument("--arrays", nargs="*", type=int, default=[100, 300])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--builds", type=int, default=1)
    parser.add_argument("--no-step", action="store_true")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for name in options.names:
        row = [name]
        if not options.no_step:
            ours, theirs, ratio = steps(name, options.rounds, clock)
            row.append(f"step {1e3 * ours:.2f} / {1e3 * theirs:.2f} ms = {ratio:.2f}")
        for arrays in options.arrays:
            ours, theirs, ratio = builds(name, arrays, options.builds)
            row.append(f"build of {arrays} {ours:.2f} / {theirs:.2f} s = {ratio:.2f}")
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()

"""A learning rate for each group of arrays: a tree of numbers beside `optax.partition`.

    python tests/benchmarks/groups.py                    # 100 arrays in 2, 5, 25 and 100 groups
    python tests/benchmarks/groups.py --groups 25 --optimizers adam --clock processor

100 arrays of four shapes, as 25 layers of four arrays. A group has a learning rate of its own:

data    `aj.adam(rates)` as an argument of the jitted function, as `train_step` and an update outside of
        `jit` have it: rates is a prefix of the parameters with a number for each group
closed  the same optimizer, closed over by the jitted function, which makes constants of its numbers
optax   `optax.partition({label: optax.adam(rate), …}, labels)`, closed over: there is no other way
one     `aj.adam(rate)` as an argument, one number for all arrays: what the groups cost

Each round empties all caches and measures every one, beginning with another. Columns are those of
against_optax.py: trace, compile, their sum, and the time of a compiled update. Ratios are over optax's,
the median of the rounds' ratios. The updates of all are compared first.

XLA compiles one kernel for arrays of one shape where what differs is data, and one for each where it is
a constant: nearly all that `closed` takes more, and most of what optax does.
"""

import argparse
import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from against_optax import (
    CLOCKS,
    collector_paused,
    empty_caches,
    interleave,
    repeated,
    seconds,
)

import adaptive_jax as aj

LAYERS = 25
SHAPES = {"kernel": (64, 32), "bias": (32,), "scale": (16,), "shift": (48,)}
OPTIMIZERS = {
    "sgd": {"momentum": 0.9},
    "adam": {},
    "adamw": {"weight_decay": 1e-2},
}


def parameters():
    generator = np.random.default_rng(0)
    return [
        {
            name: jnp.array(generator.normal(size=shape), jnp.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(LAYERS)
    ]


def grouped(params, groups):
    """A tree of rates, the rate of each label, and a tree of labels."""
    if groups > LAYERS:
        number = iter(range(groups))
        labels = jax.tree.map(lambda _: f"group_{next(number)}", params)
        prefix = labels
    else:
        prefix = [f"group_{layer * groups // LAYERS}" for layer in range(LAYERS)]
        labels = [
            jax.tree.map(lambda _, label=label: label, layer)
            for label, layer in zip(prefix, params, strict=True)
        ]
    names = sorted(set(jax.tree.leaves(labels)))
    rates = {name: 1e-3 * (1 + place / len(names)) for place, name in enumerate(names)}
    return jax.tree.map(rates.__getitem__, prefix), rates, labels


def contenders(optimizer, params, groups):
    """Of each, what is called, and the optimizer where it is an argument."""
    options = OPTIMIZERS[optimizer]
    tree, rates, labels = grouped(params, groups)
    ours, theirs = getattr(aj, optimizer), getattr(optax, optimizer)

    def partitioned():
        return optax.partition({k: theirs(x, **options) for k, x in rates.items()}, labels)

    return {
        "data": (lambda: ours(tree, **options), True),
        "closed": (lambda: ours(tree, **options), False),
        "optax": (partitioned, False),
        "one": (lambda: ours(1e-3, **options), True),
    }


def prepared(make, is_argument, params):
    """A new function, and its arguments."""
    tx = make()
    state = jax.block_until_ready(tx.init(params))
    if is_argument:
        return lambda tx, *trees: tx.update(*trees), (tx, params, state, params)
    return lambda *trees: tx.update(*trees), (params, state, params)


def check_equal(made, params):
    updates = {}
    for name in ("data", "closed", "optax"):
        update, arguments = prepared(*made[name], params)
        updates[name] = jax.tree.leaves(jax.jit(update)(*arguments)[0])
    for each in zip(*updates.values(), strict=True):
        for one in each[:2]:
            np.testing.assert_allclose(one, each[2], rtol=2e-5, atol=1e-9)


def builder(make, is_argument, params, clock):
    def sample():
        empty_caches()
        update, arguments = prepared(make, is_argument, params)
        found = {}

        def trace():
            found["traced"] = jax.jit(update).trace(*arguments)

        def build():
            found["traced"].lower().compile()

        with collector_paused():
            times = {"trace": seconds(trace, clock), "compile": seconds(build, clock)}
        return {**times, "build": sum(times.values())}

    return sample


def stepper(make, is_argument, params, clock):
    update, arguments = prepared(make, is_argument, params)
    jitted = jax.jit(update)
    return repeated("step", lambda: jax.block_until_ready(jitted(*arguments)), clock)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 5, 25, 100])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    clock, params = CLOCKS[arguments.clock], parameters()
    print(
        "| optimizer | groups | column | data, s | closed | optax | one | data/optax | closed/optax |"
    )
    print("|---" * 9 + "|")
    for optimizer, groups in itertools.product(arguments.optimizers, arguments.groups):
        made = contenders(optimizer, params, groups)
        check_equal(made, params)
        for kind in (builder, stepper):
            samplers = {name: kind(*each, params, clock) for name, each in made.items()}
            taken = interleave(samplers, 0.0, arguments.rounds)
            for column in taken["data"][0]:
                times = {name: [each[column] for each in rounds] for name, rounds in taken.items()}
                cells = [f"{statistics.median(each):.4g}" for each in times.values()]
                for name in ("data", "closed"):
                    ratios = [a / b for a, b in zip(times[name], times["optax"], strict=True)]
                    cells.append(f"{statistics.median(ratios):.2f}")
                print("|", " | ".join([optimizer, str(groups), column, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()

"""The final training loss with state and parameters below 32 bits, beside that of float32.

    python tests/benchmarks/final_loss.py
    python tests/benchmarks/final_loss.py digits --seeds 16

Adam trains two problems: a network with one hidden layer on scikit-learn's digits, and a transformer of
two layers on the characters of Python's `help()`. Every row has the same seeds, so the same first
parameters (but for their rounding) and the same batches in the same order. Needs the `examples` extra.
Networks compute in float32 from whatever the parameters are kept in; gradients have the dtype of the
parameters. `min_size=0` has even the smallest arrays compressed.

The loss is that of a large batch which stays the same, in float32, mean over the last ten steps. Printed
are its mean over the seeds, the mean of the paired differences to float32, the standard error of that,
and how many standard errors the difference is away from 0. Of rows without any difference, one in
twelve is more than two away with eight seeds (Student's t). One row is there to compare with: float32,
but from first parameters that were rounded to bfloat16 once, so that only the chaos of training differs.
Takes four minutes on two CPU cores, seven on busy ones, most of it for the text.

How to read it:

* "parameters bfloat16, nearest" is expected to fail: updates below a 512th of a parameter are lost.
* "state bfloat16, nearest" trains, and is broken: its second moment never decays, so its steps get too
  small. Paired differences tell, but of the loss on the text it is a quarter of a per cent: a final loss
  does not prove a storage sound. Its decay, its extremes and its bias are tested by themselves.
* "state int8" has a second moment that is right on average and spread by a sixth, of which the mean of
  1/√ν is 1 % larger: as if the learning rate were. Where training ends early, the loss is a bit lower.
* Parameters that are rounded stochastically go a random walk besides, whose steps grow with the updates.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import digits as digits_example
import language_model
import low_precision

LAST = 10  # steps after which the loss is measured


@dataclass(frozen=True)
class Variant:
    """How the optimizer's state and the parameters are kept."""

    storage: Any = None
    dtype: Any = jnp.float32
    rounding: str = "nearest"
    correction: str | None = None
    """That of `compensate`; None to do without it."""
    first_dtype: Any = jnp.float32
    """What the first parameters are rounded to, once."""


BFLOAT16 = aj.BFloat16(min_size=0)
INT8 = aj.Blocks(bits=8, min_size=0)
INT16 = aj.Blocks(bits=16, min_size=0)
low = partial(Variant, dtype=jnp.bfloat16)
VARIANTS = {
    "float32": Variant(),
    "float32, first parameters rounded": Variant(first_dtype=jnp.bfloat16),
    "state bfloat16, nearest": Variant(aj.Float(jnp.bfloat16)),
    "state bfloat16": Variant(BFLOAT16),
    "state int8": Variant(INT8),
    "state int16": Variant(INT16),
    "state mu int8, nu int16": Variant({"mu": INT8, "nu": INT16}),
    "parameters bfloat16, nearest": low(),
    "parameters bfloat16, stochastic": low(rounding="stochastic"),
    "parameters 24 bits": low(correction="int8"),
    "parameters bfloat16, compensated": low(correction="parameter"),
    "parameters bfloat16, stochastic; state int8": low(INT8, rounding="stochastic"),
}


class Problem(NamedTuple):
    """init(key) makes float32 parameters; loss_fn(params, batch) takes such.

    data: what take(data, indices) gives a batch from.
    indices: those of all steps and seeds, an array of steps x seeds x batch.
    fixed: the batch to measure the loss with.
    """

    title: str
    learning_rate: float
    init: Any
    loss_fn: Any
    take: Any
    data: Any
    indices: Any
    fixed: Any


def digits(seeds, *, steps=1500, batch=64):
    (images, labels), _ = digits_example.load()
    images = images.reshape(len(images), -1)

    def order(seed):
        shuffler = np.random.default_rng(seed)
        epochs = -(-steps * batch // len(images))
        all_indices = np.concatenate([shuffler.permutation(len(images)) for _ in range(epochs)])
        return all_indices[: steps * batch].reshape(steps, batch)

    return Problem(
        title="digits",
        learning_rate=1e-3,
        init=partial(low_precision.init_network, dtype=jnp.float32),
        loss_fn=lambda params, batch: low_precision.loss_function(params, *batch),
        take=lambda data, indices: (data[0][indices], data[1][indices]),
        data=(images, labels),
        indices=np.stack([order(seed) for seed in range(seeds)], axis=1),
        fixed=(images, labels),
    )


def text(seeds, *, steps=800, batch=8, length=32):
    characters, tokens, _ = language_model.load()

    def take(tokens, starts):
        return tokens[starts[:, None] + np.arange(length + 1)]

    def starts(seed, shape):
        return np.random.default_rng(seed).integers(len(tokens) - length, size=shape)

    return Problem(
        title="text",
        learning_rate=3e-3,
        init=partial(
            language_model.init, vocabulary=len(characters), layers=2, width=64, length=length
        ),
        loss_fn=language_model.loss_function,
        take=take,
        data=tokens,
        indices=np.stack([starts(seed, (steps, batch)) for seed in range(seeds)], axis=1),
        fixed=take(tokens, starts(2**31, 128)),
    )


PROBLEMS = {"digits": digits, "text": text}


def optimizer(variant, learning_rate, steps):
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=steps // 20,
        decay_steps=steps,
        end_value=learning_rate / 10,
    )
    tx = aj.adam(schedule, storage=variant.storage)
    return tx if variant.correction is None else aj.compensate(tx, variant.correction)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def train(problem, variant):
    """The final loss of every seed; all of them are trained at once."""
    steps, seeds, _ = problem.indices.shape
    tx = optimizer(variant, problem.learning_rate, steps)

    def begin(key):
        params = cast(problem.init(key), variant.first_dtype)
        params = cast(params, variant.dtype)
        return params, tx.init(params)

    def loss_fn(params, batch):
        return problem.loss_fn(cast(params, jnp.float32), batch)

    def advance(run, indices, data, step):
        params, opt_state = run
        gradients = jax.grad(loss_fn)(params, problem.take(data, indices))
        updates, opt_state = tx.update(gradients, opt_state, params)
        step = step if variant.rounding == "stochastic" else None
        return aj.apply_updates(params, updates, rounding=variant.rounding, step=step), opt_state

    def measure(run, fixed):
        return problem.loss_fn(aj.exact_params(*run), fixed)

    @jax.jit
    def train_all(runs, indices, data, fixed):
        def body(runs, inputs):
            step, indices = inputs
            runs = jax.vmap(advance, in_axes=(0, 0, None, None))(runs, indices, data, step)
            losses = jax.lax.cond(
                step >= steps - LAST,
                lambda: jax.vmap(measure, in_axes=(0, None))(runs, fixed),
                lambda: jnp.zeros(seeds),
            )
            return runs, losses

        _, losses = jax.lax.scan(body, runs, (jnp.arange(steps), indices))
        return losses[-LAST:].mean(0)

    # The first parameters are made outside: within, XLA may leave out a cast there and back.
    runs = jax.vmap(begin)(jax.vmap(jax.random.key)(jnp.arange(seeds)))
    return np.array(train_all(runs, problem.indices, problem.data, problem.fixed), np.float64)


def compare(problem):
    """Print one table: a row for each variant."""
    steps, seeds, batch = problem.indices.shape
    print(f"\n{problem.title}: {steps} steps with batches of {batch}, {seeds} seeds\n")
    width = max(map(len, VARIANTS))
    print(f"| {'':{width}} |   loss | difference | standard error | standard errors |")
    print(f"|{'-' * (width + 2)}|-------:|-----------:|---------------:|----------------:|")
    reference = None
    for name, variant in VARIANTS.items():
        losses = train(problem, variant)
        row = f"| {name:{width}} | {losses.mean():.4f} | "
        if reference is None:
            reference = losses
            row += f"{'':10} | {'':14} | {'':15} |"
        else:
            differences = losses - reference
            mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(seeds)
            row += f"{mean:+10.5f} | {error:14.5f} | {mean / error:+15.1f} |"
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problems", nargs="*", metavar="problem", help="digits or text, or both")
    parser.add_argument("--seeds", type=int, default=8, help="runs per row, 2 or more")
    arguments = parser.parse_args()
    if unknown := set(arguments.problems) - set(PROBLEMS):
        parser.error(f"{sorted(unknown)}: problems are {', '.join(PROBLEMS)}")
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: must be 2 or more, to have a standard error")
    started = time.perf_counter()
    for name in arguments.problems or PROBLEMS:
        compare(PROBLEMS[name](arguments.seeds))
    print(f"\n{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()

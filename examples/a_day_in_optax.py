"""A whole training script with optax: what `a_day.py` does with less.

    pip install -e ".[examples]" flax
    python a_day_in_optax.py --folder day_in_optax

Clipping, AdamW with warm-up, cosine and a mask for its decay, gradients accumulated over two batches, an
average of the parameters, an evaluation of it after each epoch, a log, the best parameters, early
stopping, checkpoints. Started again, it goes on with the newest one. Prints a test accuracy of about 97 %.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
from digits import cross_entropy, load
from flax import nnx
from with_flax_nnx import STRUCTURE, init, loss_function

(IMAGES, LABELS), (TEST_IMAGES, TEST_LABELS) = load()
EPOCHS, BATCH_SIZE, PARTS, AVERAGE, PATIENCE = 10, 64, 2, 0.98, 3
STEPS = len(IMAGES) // BATCH_SIZE


def batches(epoch):
    """The halves of whole batches, in an order of its own for each epoch."""
    order = np.random.default_rng(epoch).permutation(len(IMAGES))[: STEPS * BATCH_SIZE]
    for rows in np.split(order, STEPS * PARTS):
        yield IMAGES[rows], LABELS[rows]


def decays(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.003, STEPS, EPOCHS * STEPS)
OPTIMIZER = optax.MultiSteps(
    optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(SCHEDULE, weight_decay=0.01, mask=decays),
    ),
    PARTS,
)


class State(NamedTuple):
    params: Any
    average: Any
    opt_state: Any


def create():
    params = init(jax.random.key(0))
    return State(params, jax.tree.map(jnp.copy, params), OPTIMIZER.init(params))


@functools.partial(jax.jit, donate_argnames="state")
def train_step(state, batch):
    loss, gradients = jax.value_and_grad(loss_function)(state.params, batch)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average is of steps: the first half of a batch makes none.
    average = jax.lax.cond(
        OPTIMIZER.has_updated(opt_state),
        lambda: optax.incremental_update(params, state.average, 1 - AVERAGE),
        lambda: state.average,
    )
    return State(params, average, opt_state), loss


@jax.jit
def measure(params, batch):
    """Sums over the rows, for batches of different sizes."""
    images, labels = batch
    logits = nnx.merge(STRUCTURE, params)(images)
    is_right = jnp.argmax(logits, axis=-1) == labels
    return jnp.array([cross_entropy(logits, labels) * len(labels), jnp.sum(is_right)])


def evaluate(params):
    sums = np.zeros(2)
    for start in range(0, len(TEST_IMAGES), 200):
        rows = slice(start, start + 200)
        sums += measure(params, (TEST_IMAGES[rows], TEST_LABELS[rows]))
    loss, accuracy = sums / len(TEST_IMAGES)
    return {"eval_loss": float(loss), "eval_accuracy": float(accuracy)}


def run(folder, epochs=EPOCHS):
    """Trains up to so many epochs. The last state, and the losses of the steps and of the epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    options = orbax.CheckpointManagerOptions(max_to_keep=3)
    state, first = create(), 0
    losses, evaluations = [], []
    best_params, best_loss, waited = None, math.inf, 0
    with (
        orbax.CheckpointManager((folder / "checkpoints").absolute(), options=options) as manager,
        (folder / "log.jsonl").open("a") as log,
    ):
        if (newest := manager.latest_step()) is not None:
            abstract = jax.tree.map(orbax.utils.to_shape_dtype_struct, state)
            state = manager.restore(newest, args=orbax.args.StandardRestore(abstract))
            first = newest // STEPS
        for epoch in range(first, epochs):
            began, losses_of_epoch = time.perf_counter(), []
            for batch in batches(epoch):
                state, loss = train_step(state, batch)
                losses_of_epoch.append(loss)
            # Fetched once an epoch: that of a step would wait for it.
            of_steps = np.array(jax.device_get(losses_of_epoch)).reshape(STEPS, PARTS).mean(1)
            losses.extend(of_steps)
            evaluations.append(evaluate(state.average))
            row = {
                "step": (epoch + 1) * STEPS,
                "loss": float(of_steps[-1]),
                "learning_rate": float(SCHEDULE((epoch + 1) * STEPS - 1)),
                "steps_per_second": STEPS / (time.perf_counter() - began),
                **evaluations[-1],
            }
            print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
            log.write(f"{json.dumps(row)}\n")
            log.flush()
            manager.save((epoch + 1) * STEPS, args=orbax.args.StandardSave(state))
            if row["eval_loss"] < best_loss:
                # A copy: the next step writes over the average.
                best_params = jax.tree.map(jnp.copy, state.average)
                best_loss, waited = row["eval_loss"], 0
            else:
                waited += 1
                if waited == PATIENCE:
                    break
    eval_losses = np.array([each["eval_loss"] for each in evaluations])
    return state, best_params, np.array(losses), eval_losses


def main():
    parser = argparse.ArgumentParser(description="Train on handwritten digits, with optax alone.")
    parser.add_argument("--folder", type=Path, default=Path("day_in_optax"), help="of the run")
    _, best_params, _, _ = run(parser.parse_args().folder)
    if best_params is not None:
        print(f"test accuracy: {100 * evaluate(best_params)['eval_accuracy']:.2f} %")


if __name__ == "__main__":
    main()

"""A whole training script with `TrainState` and `fit`; `a_day_in_optax.py` does the same with optax.

    pip install -e ".[examples]" flax
    python a_day.py --folder day

Clipping, AdamW with warm-up, cosine and a mask for its decay, gradients accumulated over two parts of a
batch, an average of the parameters, an evaluation of it after each epoch, a log, the best parameters, early
stopping, checkpoints. Started again, it goes on with the newest one, which has
the best and the patience too. Prints a test accuracy of about 97 %.
"""

import argparse
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from digits import cross_entropy, load
from flax import nnx
from with_flax_nnx import STRUCTURE, init, loss_function

import adaptive_jax as aj

(IMAGES, LABELS), (TEST_IMAGES, TEST_LABELS) = load()
EPOCHS, BATCH_SIZE, PARTS, AVERAGE, PATIENCE = 10, 64, 2, 0.98, 3
STEPS = len(IMAGES) // BATCH_SIZE


def batches(epoch):
    """Whole batches, in an order of its own for each epoch."""
    order = np.random.default_rng(epoch).permutation(len(IMAGES))[: STEPS * BATCH_SIZE]
    for rows in np.split(order, STEPS):
        yield IMAGES[rows], LABELS[rows]


def decays(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def create():
    schedule = aj.schedules.warmup_cosine_decay_schedule(0.0, 0.003, STEPS, EPOCHS * STEPS)
    tx = aj.chain(
        aj.clip_by_global_norm(1.0),
        aj.adamw(schedule, weight_decay=0.01, mask=decays),
    )
    average = aj.average(AVERAGE, bias_correction=False)
    return aj.TrainState.create(init(jax.random.key(0)), tx, average=average)


def measure(params, batch):
    images, labels = batch
    logits = nnx.merge(STRUCTURE, params)(images)
    is_right = jnp.argmax(logits, axis=-1) == labels
    return {"loss": cross_entropy(logits, labels), "accuracy": jnp.mean(is_right)}


TEST = [(TEST_IMAGES[i : i + 200], TEST_LABELS[i : i + 200]) for i in (0, 200, 400)]
EVALUATION = aj.Evaluation(measure, TEST)


def run(folder, epochs=EPOCHS):
    """Trains up to so many epochs. The last state, and the losses of the steps and of the epochs."""
    state, best = create(), aj.KeepBest()
    if (folder / "checkpoints").exists():
        state = aj.restore_checkpoint(folder / "checkpoints", state)
    first, taken = divmod(int(state.step), STEPS)
    state, history = aj.fit(
        state,
        aj.train_step(loss_function, accumulate=PARTS),
        # It may go on in the middle of an epoch, whose first batches were taken.
        lambda epoch: islice(batches(first + epoch), 0 if epoch else taken, None),
        epochs=max(0, epochs - first),
        evaluate=EVALUATION,
        callback=[best, aj.EarlyStopping(patience=PATIENCE)],
        log_every=STEPS,
        log_to=folder / "log.jsonl",
        checkpoints=aj.Checkpoints(folder / "checkpoints", every=STEPS, keep=3),
    )
    return state, best.params, history.get("loss", []), history.get("eval_loss", [])


def main():
    parser = argparse.ArgumentParser(description="Train on handwritten digits.")
    parser.add_argument("--folder", type=Path, default=Path("day"), help="of the run")
    _, best_params, _, _ = run(parser.parse_args().folder)
    print(f"test accuracy: {100 * EVALUATION(best_params)['accuracy']:.2f} %")


if __name__ == "__main__":
    main()

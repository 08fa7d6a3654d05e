"""Train a network whose weights are bfloat16, with three ways to add small updates to them.

    pip install -e ".[examples]"
    python low_precision.py

Ten seeds, all at once, learn scikit-learn's handwritten digits with Adam at a small learning rate, in
float32 and three times in bfloat16. Takes half a minute on two CPU cores and prints (the last digits
differ between machines):

    parameters                     training loss     test accuracy
    float32                      0.1334 ± 0.0055      96.80 ± 0.46
    bfloat16, to nearest         0.7164 ± 0.0316      90.07 ± 1.10
    bfloat16, stochastic         0.1334 ± 0.0056      96.76 ± 0.45
    bfloat16, compensated        0.1334 ± 0.0055      96.82 ± 0.43

A bfloat16 number has eight bits: a weight of 0.1 does not notice an update of 0.0003 when the sum is
rounded to nearest. The curves are drawn in low_precision.png.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import load

import adaptive_jax as aj

try:
    from matplotlib.figure import Figure
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error

BATCH_SIZE = 64
ADAM = aj.adam(3e-4)
# For each way: the optimizer, the dtype of the parameters, and how updates are rounded.
WAYS = {
    "float32": (ADAM, jnp.float32, "nearest"),
    "bfloat16, to nearest": (ADAM, jnp.bfloat16, "nearest"),
    "bfloat16, stochastic": (ADAM, jnp.bfloat16, "stochastic"),
    "bfloat16, compensated": (aj.compensate(ADAM), jnp.bfloat16, "nearest"),
}


def init_network(key, dtype):
    """One hidden layer. The same numbers in every dtype, but for their rounding."""
    hidden_key, output_key = jax.random.split(key)
    he_normal = jax.nn.initializers.he_normal()
    params = {
        "hidden": {"kernel": he_normal(hidden_key, (64, 128)), "bias": jnp.zeros(128)},
        "output": {"kernel": he_normal(output_key, (128, 10)), "bias": jnp.zeros(10)},
    }
    return jax.tree.map(lambda array: array.astype(dtype), params)


def network(params, images):
    """Logits, computed in the dtype of the parameters."""
    images = images.astype(params["hidden"]["kernel"].dtype)
    hidden = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def loss_function(params, images, labels):
    logits = network(params, images).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(tx, rounding, params, opt_state, step, images, labels):
    loss, grads = jax.value_and_grad(loss_function)(params, images, labels)
    updates, opt_state = tx.update(grads, opt_state, params)
    # The step decides which way each number is rounded. Rounding to nearest takes none.
    step = step if rounding == "stochastic" else None
    return aj.apply_updates(params, updates, rounding=rounding, step=step), opt_state, loss


@partial(jax.jit, static_argnames="rounding")
@partial(jax.vmap, in_axes=(None, None, 0, 0, None, 0, None, None))
def train_epoch(tx, rounding, params, opt_state, first_step, batches, images, labels):
    """One epoch of every seed at once. Returns params, opt_state and the mean loss."""

    def body(carry, inputs):
        step, batch = inputs
        *carry, loss = train_step(tx, rounding, *carry, step, images[batch], labels[batch])
        return carry, loss

    steps = first_step + jnp.arange(len(batches))
    (params, opt_state), losses = jax.lax.scan(body, [params, opt_state], (steps, batches))
    return params, opt_state, losses.mean()


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def accuracy(params, images, labels):
    return jnp.mean(jnp.argmax(network(params, images), axis=-1) == labels)


def train(way, images, labels, *, seeds, epochs, progress):
    """Return the trained params of all seeds and their losses, an array of seeds x epochs."""
    tx, dtype, rounding = WAYS[way]
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params = jax.vmap(partial(init_network, dtype=dtype))(keys)
    opt_state = jax.vmap(tx.init)(params)
    shufflers = [np.random.default_rng(seed) for seed in range(seeds)]
    steps = len(images) // BATCH_SIZE
    losses = []
    for epoch in range(epochs):
        orders = [shuffler.permutation(len(images)) for shuffler in shufflers]
        batches = np.array(orders)[:, : steps * BATCH_SIZE].reshape(seeds, steps, BATCH_SIZE)
        params, opt_state, loss = train_epoch(
            tx, rounding, params, opt_state, epoch * steps, batches, images, labels
        )
        losses.append(loss)
        progress.update()
    return params, np.array(jax.device_get(losses)).T


def draw(losses_of_ways, accuracies_of_ways, path):
    """The losses of the epochs, mean and range of the seeds, and the accuracy of every seed."""
    # Okabe and Ito's colours stay apart for colour-blind readers, dashes in grey print.
    styles = [
        ("#000000", "-"),
        ("#D55E00", "-."),
        ("#0072B2", "--"),
        ("#009E73", ":"),
    ]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (way, (color, linestyle)) in enumerate(zip(losses_of_ways, styles, strict=True)):
        losses = losses_of_ways[way]
        epochs = np.arange(1, losses.shape[1] + 1)
        left.plot(epochs, losses.mean(0), color=color, linestyle=linestyle, lw=2, label=way)
        left.fill_between(epochs, losses.min(0), losses.max(0), color=color, alpha=0.2, lw=0)
        accuracies = accuracies_of_ways[way]
        right.plot(accuracies, np.full(len(accuracies), row), "o", color=color, alpha=0.5)
        right.plot(accuracies.mean(), row, "|", color=color, markersize=24, markeredgewidth=2)
    left.set_yscale("log")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss (cross-entropy)")
    left.legend(handlelength=4)
    left.grid(alpha=0.3)
    right.set_yticks(range(len(styles)), list(losses_of_ways))
    right.set_ylim(len(styles) - 0.5, -0.5)
    right.set_xlabel("test accuracy (%)")
    right.grid(alpha=0.3, axis="x")
    left.set_title(f"mean and range of {len(accuracies)} seeds")
    right.set_title("each seed, and the mean")
    figure.suptitle("Handwritten digits, Adam with a learning rate of 0.0003")
    figure.savefig(path, dpi=110)


def read_arguments():
    parser = argparse.ArgumentParser(description="Train in bfloat16, three ways.")
    parser.add_argument("--seeds", type=int, default=10, help="runs per way, 2 or more")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--figure", type=Path, default=Path("low_precision.png"), help="PNG to write"
    )
    arguments = parser.parse_args()
    # Checked now: the figure is written last, and a wrong path must not cost the whole run.
    if arguments.figure.suffix != ".png" or not arguments.figure.parent.is_dir():
        parser.error(f"--figure {arguments.figure}: must be a .png in a folder that exists")
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: must be 2 or more, to have a spread")
    if arguments.epochs < 1:
        parser.error(f"--epochs {arguments.epochs}: must be 1 or more")
    return arguments


def main():
    arguments = read_arguments()
    (train_images, train_labels), (test_images, test_labels) = load()
    train_images, test_images = (x.reshape(len(x), -1) for x in (train_images, test_images))
    losses_of_ways, accuracies_of_ways = {}, {}
    print(f"{'parameters':<24}{'training loss':>20}{'test accuracy':>18}")
    # disable=None: no bar where the output is not a terminal.
    with tqdm(total=len(WAYS) * arguments.epochs, unit="epoch", disable=None) as progress:
        for way in WAYS:
            progress.set_description(way)
            params, losses = train(
                way,
                train_images,
                train_labels,
                seeds=arguments.seeds,
                epochs=arguments.epochs,
                progress=progress,
            )
            accuracies = 100 * np.array(accuracy(params, test_images, test_labels))
            losses_of_ways[way], accuracies_of_ways[way] = losses, accuracies
            last = losses[:, -1]
            progress.write(
                f"{way:<24}{last.mean():>11.4f} ± {last.std(ddof=1):.4f}"
                f"{accuracies.mean():>11.2f} ± {accuracies.std(ddof=1):.2f}"
            )
    print(f"mean ± standard deviation of {arguments.seeds} seeds")
    draw(losses_of_ways, accuracies_of_ways, arguments.figure)
    print(f"curves drawn in {arguments.figure}")


if __name__ == "__main__":
    main()

"""Train a small convolutional network on handwritten digits with five optimizers.

    pip install -e ".[examples]"
    python train_digits.py

Takes less than a minute on two CPU cores, compilation included, and prints (the seconds, and the
last digits of the accuracy, differ between machines):

    optimizer            test accuracy      seconds           state
                                     %      per run bytes/parameter
    SGD                   97.91 ± 0.20         0.55             0.0
    SGD with momentum     97.78 ± 0.35         0.69             4.0
    AdaGrad               97.91 ± 0.20         0.72             4.0
    RMSprop               98.49 ± 0.10         0.55             4.0
    Adam                  98.27 ± 0.48         0.64             8.0

The test set has 450 images, so one image is 0.22 %: these five are about equally good here. The
training losses, which do differ, are drawn in digits.png. The training loop is in `train_step` and
`train`.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

try:
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error

# Each learning rate had the best accuracy on a held-out quarter of the training images, among
# 0.001, 0.003, 0.01, ... 1.
OPTIMIZERS = {
    "SGD": aj.sgd(0.3),
    "SGD with momentum": aj.sgd(0.1, momentum=0.9),
    "AdaGrad": aj.adagrad(0.3),
    "RMSprop": aj.rmsprop(0.01),
    "Adam": aj.adam(0.003),
}


def init_network(key):
    """Two convolutions and one dense layer: about 10,000 parameters in a plain dict."""
    first_key, second_key, output_key = jax.random.split(key, 3)
    he_normal = jax.nn.initializers.he_normal()
    return {
        "first": {"kernel": he_normal(first_key, (3, 3, 1, 16)), "bias": jnp.zeros(16)},
        "second": {"kernel": he_normal(second_key, (3, 3, 16, 32)), "bias": jnp.zeros(32)},
        "output": {"kernel": he_normal(output_key, (4 * 4 * 32, 10)), "bias": jnp.zeros(10)},
    }


def convolve(layer, images, stride):
    convolved = jax.lax.conv_general_dilated(
        images,
        layer["kernel"],
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return convolved + layer["bias"]


def network(params, images):
    """Logits, one row of ten for each 8x8 image."""
    hidden = jax.nn.relu(convolve(params["first"], images, stride=1))
    hidden = jax.nn.relu(convolve(params["second"], hidden, stride=2))
    hidden = hidden.reshape(len(hidden), -1)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def loss_function(params, images, labels):
    logits = network(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def accuracy(params, images, labels):
    return jnp.mean(jnp.argmax(network(params, images), axis=-1) == labels)


# The optimizer is a pytree, so it is an argument like any other, and all runs of one optimizer
# share one compilation. Donating params and opt_state lets XLA write the new values over the old.
@partial(jax.jit, donate_argnames=("params", "opt_state"))
def train_step(tx, params, opt_state, images, labels):
    loss, grads = jax.value_and_grad(loss_function)(params, images, labels)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


def train(tx, images, labels, *, seed, epochs, batch_size, progress):
    """Return the trained params, the optimizer's last state and the mean loss of each epoch."""
    params = init_network(jax.random.key(seed))
    opt_state = tx.init(params)
    shuffler = np.random.default_rng(seed)
    loss_of_epochs = []
    for _ in range(epochs):
        order = shuffler.permutation(len(images))
        losses = []
        # Whole batches only: a smaller last one would be compiled a second time.
        for start in range(0, len(images) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            params, opt_state, loss = train_step(
                tx, params, opt_state, images[batch], labels[batch]
            )
            losses.append(loss)  # still on the device: reading it here would stall every step
        loss_of_epochs.append(np.mean(jax.device_get(losses)))
        progress.update()
    return params, opt_state, loss_of_epochs


def state_bytes_per_parameter(opt_state, params):
    """Count the arrays of the state; scalars, such as the step counter, are left out."""
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(opt_state) if leaf.ndim > 0)
    return state_bytes / sum(leaf.size for leaf in jax.tree.leaves(params))


def draw_losses(losses_of_optimizers, path):
    """Draw the mean of the seeds as a line and the range from lowest to highest as a band."""
    # Okabe and Ito's colours stay apart for colour-blind readers, dashes and markers in grey print.
    styles = [
        ("#000000", "-", "o"),
        ("#0072B2", "--", "s"),
        ("#D55E00", "-.", "^"),
        ("#009E73", ":", "D"),
        ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, losses), (color, linestyle, marker) in zip(
        losses_of_optimizers.items(), styles, strict=True
    ):
        losses = np.array(losses)  # seeds x epochs
        epochs = np.arange(1, losses.shape[1] + 1)
        axes.plot(
            epochs,
            losses.mean(axis=0),
            color=color,
            linestyle=linestyle,
            marker=marker,
            markevery=max(1, len(epochs) // 10),
            label=name,
        )
        axes.fill_between(
            epochs, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.2, linewidth=0
        )
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("training loss (cross-entropy)")
    axes.set_title(f"Handwritten digits: mean and range of {len(losses)} seeds")
    axes.legend(handlelength=4)  # long enough to tell the dashes apart
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def read_arguments():
    parser = argparse.ArgumentParser(description="Train on handwritten digits, five optimizers.")
    parser.add_argument("--seeds", type=int, default=5, help="runs per optimizer, 2 or more")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--figure", type=Path, default=Path("digits.png"), help="PNG to write")
    arguments = parser.parse_args()
    # Checked now: the figure is written last, and a wrong path must not cost the whole run.
    if arguments.figure.suffix != ".png" or not arguments.figure.parent.is_dir():
        parser.error(f"--figure {arguments.figure}: must be a .png in a folder that exists")
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: must be 2 or more, to have a spread")
    if arguments.epochs < 1:
        parser.error(f"--epochs {arguments.epochs}: must be 1 or more")
    return parser, arguments


def main():
    parser, arguments = read_arguments()
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)  # pixels are 0 to 16
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    if not 1 <= arguments.batch_size <= len(train_images):
        parser.error(f"--batch-size {arguments.batch_size}: must be from 1 to {len(train_images)}")

    rows = []
    losses_of_optimizers = {}
    # disable=None: no bar where the output is not a terminal.
    with tqdm(
        total=len(OPTIMIZERS) * arguments.seeds * arguments.epochs, unit="epoch", disable=None
    ) as progress:
        for name, tx in OPTIMIZERS.items():
            progress.set_description(name)
            accuracies, seconds, losses = [], [], []
            # A seed fixes the initial weights and the order of the batches, for every optimizer.
            for seed in range(arguments.seeds):
                start = time.perf_counter()
                params, opt_state, loss_of_epochs = train(
                    tx,
                    train_images,
                    train_labels,
                    seed=seed,
                    epochs=arguments.epochs,
                    batch_size=arguments.batch_size,
                    progress=progress,
                )
                seconds.append(time.perf_counter() - start)
                accuracies.append(100 * float(accuracy(params, test_images, test_labels)))
                losses.append(loss_of_epochs)
            losses_of_optimizers[name] = losses
            rows.append(
                f"{name:<18}{np.mean(accuracies):>9.2f} ± {np.std(accuracies, ddof=1):.2f}"
                f"{min(seconds):>13.2f}{state_bytes_per_parameter(opt_state, params):>16.1f}"
            )

    print(f"{'optimizer':<18}{'test accuracy':>16}{'seconds':>13}{'state':>16}")
    print(f"{'':<18}{'%':>16}{'per run':>13}{'bytes/parameter':>16}")
    print(*rows, sep="\n")
    print(
        f"accuracy: mean ± standard deviation of {arguments.seeds} seeds; "
        "seconds: the fastest run, so without compilation;\n"
        "state: without the step counter, which is one number for the whole network"
    )
    draw_losses(losses_of_optimizers, arguments.figure)
    print(f"training losses drawn in {arguments.figure}")


if __name__ == "__main__":
    main()

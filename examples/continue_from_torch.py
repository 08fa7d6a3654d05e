"""Train half way in PyTorch, go on in JAX, and see that nothing has changed.

    pip install -e ".[examples]" torch
    python continue_from_torch.py

A small convolutional network learns scikit-learn's handwritten digits with AdamW under a cosine
schedule. Half way, PyTorch saves model and optimizer with `torch.save`. PyTorch then goes on, and so
does JAX, from the saved file and with the same batches. Takes less than half a minute on two CPU
cores and prints (the last digits differ between machines):

    optimizer: torch.adamw(lr=schedule, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05)
      conv1.weight   -> conv1/kernel    axes (2, 3, 1, 0)
      conv1.bias     -> conv1/bias
      conv2.weight   -> conv2/kernel    axes (2, 3, 1, 0)
      conv2.bias     -> conv2/bias
      output.weight  -> output/kernel   axes (1, 0)
      output.bias    -> output/bias
    test accuracy in PyTorch: 98.22 %
    test accuracy in JAX:     98.22 %
    largest relative difference of a parameter array after 210 more steps: 7.4e-05 (tolerance 1e-03)

The training losses of both are drawn in continued.png.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

try:
    import torch
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(
        f'This example needs {error.name}: pip install -e ".[examples]" torch'
    ) from error

LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05
BATCH_SIZE = 64
# Rounding differs between the libraries, and every step builds on the one before it.
TOLERANCE = 1e-3


# ---------------------------------------------------------------- the first half: PyTorch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.output = torch.nn.Linear(32 * 4 * 4, 10)

    def forward(self, images):
        hidden = torch.relu(self.conv1(images[:, None]))
        hidden = torch.relu(self.conv2(hidden))
        return self.output(hidden.flatten(1))


def make_optimizer(model, steps):
    # Made of named parameters, so that the saved state has their names.
    optimizer = torch.optim.AdamW(
        model.named_parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def train_in_torch(model, optimizer, scheduler, batches):
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        logits = model(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------- the second half: JAX


def init_params():
    """The shapes and names of the same network in JAX's usual layouts; the values do not matter."""
    return {
        "conv1": {"kernel": jnp.zeros((3, 3, 1, 16)), "bias": jnp.zeros(16)},
        "conv2": {"kernel": jnp.zeros((3, 3, 16, 32)), "bias": jnp.zeros(32)},
        "output": {"kernel": jnp.zeros((32 * 4 * 4, 10)), "bias": jnp.zeros(10)},
    }


def convolve(layer, images, stride):
    convolved = jax.lax.conv_general_dilated(
        images,
        layer["kernel"],
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),  # "SAME" pads on the other side where the stride is 2.
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return convolved + layer["bias"]


def network(params, images):
    hidden = jax.nn.relu(convolve(params["conv1"], images[..., None], stride=1))
    hidden = jax.nn.relu(convolve(params["conv2"], hidden, stride=2))
    # Flattened in PyTorch's order, channels first: the layer after it keeps its weights.
    hidden = hidden.transpose(0, 3, 1, 2).reshape(len(hidden), -1)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def loss_function(params, images, labels):
    logits = network(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_step(tx, params, opt_state, images, labels):
    loss, grads = jax.value_and_grad(loss_function)(params, images, labels)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def train_in_jax(tx, params, opt_state, batches):
    losses = []
    for images, labels in batches:
        params, opt_state, loss = train_step(tx, params, opt_state, images, labels)
        losses.append(loss)
    return params, opt_state, [float(loss) for loss in losses]


# ---------------------------------------------------------------- both


def make_batches(images, labels, epochs, seed, progress):
    shuffler = np.random.default_rng(seed)
    for _ in range(epochs):
        order = shuffler.permutation(len(images))
        for start in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            yield images[batch], labels[batch]
        progress.update()


def draw(first_half, in_torch, in_jax, path):
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    before = np.arange(1, len(first_half) + 1)
    after = len(first_half) + np.arange(1, len(in_torch) + 1)
    above.plot(before, first_half, color="#000000", linewidth=1, label="PyTorch, first half")
    above.plot(after, in_torch, color="#E69F00", linewidth=3, label="PyTorch goes on")
    above.plot(after, in_jax, color="#0072B2", linewidth=1, linestyle="--", label="JAX goes on")
    above.set_yscale("log")
    above.set_ylabel("training loss\n(cross-entropy)")
    above.set_title("Digits: the second half of a run in PyTorch and in JAX")
    above.legend()
    difference = np.abs(np.subtract(in_torch, in_jax))
    below.plot(after, np.maximum(difference, 1e-9), color="#0072B2", linewidth=1)
    below.set_yscale("log")
    below.set_ylabel("difference")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.axvline(len(first_half), color="#666666", linewidth=1)
    figure.savefig(path, dpi=150)


def read_arguments():
    parser = argparse.ArgumentParser(description="Train half way in PyTorch, go on in JAX.")
    parser.add_argument("--epochs", type=int, default=10, help="of each half, 1 or more")
    parser.add_argument("--figure", type=Path, default=Path("continued.png"), help="PNG to write")
    arguments = parser.parse_args()
    if arguments.figure.suffix != ".png" or not arguments.figure.parent.is_dir():
        parser.error(f"--figure {arguments.figure}: must be a .png in a folder that exists")
    if arguments.epochs < 1:
        parser.error(f"--epochs {arguments.epochs}: must be 1 or more")
    return arguments


def main():
    arguments = read_arguments()
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    steps = 2 * arguments.epochs * (len(train_images) // BATCH_SIZE)

    # disable=None: no bar where the output is not a terminal.
    with tqdm(total=3 * arguments.epochs, unit="epoch", disable=None) as progress:

        def half(seed):
            return make_batches(train_images, train_labels, arguments.epochs, seed, progress)

        torch.manual_seed(0)
        model = Network()
        optimizer, scheduler = make_optimizer(model, steps)
        first_half = train_in_torch(model, optimizer, scheduler, half(seed=1))

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "half_way.pt"
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint
            )
            saved = torch.load(checkpoint, weights_only=True)

        # These lines are all that it takes.
        schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
        tx = aj.interop.torch.adamw(lr=schedule, weight_decay=WEIGHT_DECAY)
        mapping = aj.interop.torch.match(init_params(), saved["model"])
        params = aj.interop.torch.import_params(init_params(), saved["model"], mapping)
        opt_state = aj.interop.torch.import_state(tx, params, saved["optimizer"], mapping)

        params, opt_state, in_jax = train_in_jax(tx, params, opt_state, half(seed=2))
        in_torch = train_in_torch(model, optimizer, scheduler, half(seed=2))

    print("optimizer:", tx)
    for name, (path, axes) in mapping.items():
        print(f"  {name:<14} -> {path:<15} {f'axes {axes}' if axes else ''}".rstrip())

    theirs = model.state_dict()
    ours = aj.interop.torch.export_params(params, mapping)
    error = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)
    predicted_here = np.argmax(network(params, test_images), axis=-1)
    predicted_there = model(torch.from_numpy(test_images)).argmax(-1).numpy()
    print(f"test accuracy in PyTorch: {100 * np.mean(predicted_there == test_labels):.2f} %")
    print(f"test accuracy in JAX:     {100 * np.mean(predicted_here == test_labels):.2f} %")
    print(
        f"largest relative difference of a parameter array after {steps // 2} more steps: {error:.1e} "
        f"(tolerance {TOLERANCE:.0e})"
    )
    draw(first_half, in_torch, in_jax, arguments.figure)
    print(f"training losses drawn in {arguments.figure}")
    if error > TOLERANCE:
        raise SystemExit("The two ends differ by more than the tolerance.")


if __name__ == "__main__":
    main()

"""Train a network that is a function and a dict of arrays.

    pip install -e ".[examples]"
    python with_plain_pytrees.py

Prints the test accuracy after ten epochs, about 97.5 %.
"""

import jax
import jax.numpy as jnp
from digits import accuracy, batches, cross_entropy, load

import adaptive_jax as aj


def init(key):
    keys = jax.random.split(key, 3)
    he_normal = jax.nn.initializers.he_normal()
    return {
        "first": {"kernel": he_normal(keys[0], (3, 3, 1, 16)), "bias": jnp.zeros(16)},
        "second": {"kernel": he_normal(keys[1], (3, 3, 16, 32)), "bias": jnp.zeros(32)},
        "output": {"kernel": he_normal(keys[2], (4 * 4 * 32, 10)), "bias": jnp.zeros(10)},
    }


def convolve(layer, images, stride):
    kernel = layer["kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", dimension_numbers=layout
    )
    return convolved + layer["bias"]


def network(params, images):
    """Logits, one row of ten for each 8x8 image."""
    hidden = jax.nn.relu(convolve(params["first"], images, stride=1))
    hidden = jax.nn.relu(convolve(params["second"], hidden, stride=2))
    hidden = hidden.reshape(len(hidden), -1)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


def loss_function(params, batch):
    images, labels = batch
    return cross_entropy(network(params, images), labels)


def main():
    train, (test_images, test_labels) = load()
    state = aj.TrainState.create(init(jax.random.key(0)), aj.adam(0.003))
    state, _ = aj.fit(state, aj.train_step(loss_function), batches(*train))
    print(f"test accuracy: {accuracy(network(state.params, test_images), test_labels):.2f} %")


if __name__ == "__main__":
    main()

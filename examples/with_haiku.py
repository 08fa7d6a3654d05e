"""Train a Haiku network.

    pip install -e ".[examples]" dm-haiku
    python with_haiku.py

Prints the test accuracy after ten epochs, about 97.5 %.
"""

import haiku as hk
import jax
import jax.numpy as jnp
from digits import accuracy, batches, cross_entropy, load

import adaptive_jax as aj


def forward(images):
    hidden = jax.nn.relu(hk.Conv2D(16, 3)(images))
    hidden = jax.nn.relu(hk.Conv2D(32, 3, stride=2)(hidden))
    return hk.Linear(10)(hidden.reshape(len(hidden), -1))


network = hk.without_apply_rng(hk.transform(forward))


def init(key):
    return network.init(key, jnp.zeros((1, 8, 8, 1)))


def loss_function(params, batch):
    images, labels = batch
    return cross_entropy(network.apply(params, images), labels)


def main():
    train, (test_images, test_labels) = load()
    state = aj.TrainState.create(init(jax.random.key(0)), aj.adam(0.003))
    state, _ = aj.fit(state, aj.train_step(loss_function), batches(*train))
    print(f"test accuracy: {accuracy(network.apply(state.params, test_images), test_labels):.2f} %")


if __name__ == "__main__":
    main()

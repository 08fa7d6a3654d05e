"""Train a Flax Linen network.

    pip install -e ".[examples]" flax
    python with_flax_linen.py

Prints the test accuracy after ten epochs, about 97.5 %.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from digits import accuracy, batches, cross_entropy, load

import adaptive_jax as aj


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Conv(16, (3, 3))(images))
        hidden = nn.relu(nn.Conv(32, (3, 3), strides=2)(hidden))
        return nn.Dense(10)(hidden.reshape(len(hidden), -1))


def init(key):
    return Network().init(key, jnp.zeros((1, 8, 8, 1)))


def loss_function(params, batch):
    images, labels = batch
    return cross_entropy(Network().apply(params, images), labels)


def main():
    train, (test_images, test_labels) = load()
    state = aj.TrainState.create(init(jax.random.key(0)), aj.adam(0.003))
    state, _ = aj.fit(state, aj.train_step(loss_function), batches(*train))
    logits = Network().apply(state.params, test_images)
    print(f"test accuracy: {accuracy(logits, test_labels):.2f} %")


if __name__ == "__main__":
    main()

"""Train an Equinox network.

    pip install -e ".[examples]" equinox
    python with_equinox.py

A model of Equinox holds functions beside its arrays: `eqx.partition` takes these apart, and
`eqx.combine` puts them together again. Prints the test accuracy after ten epochs, about 97.5 %.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from digits import accuracy, batches, cross_entropy, load

import adaptive_jax as aj


class Network(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    output: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 16, 3, padding="SAME", key=keys[0])
        self.second = eqx.nn.Conv2d(16, 32, 3, stride=2, padding="SAME", key=keys[1])
        self.output = eqx.nn.Linear(32 * 4 * 4, 10, key=keys[2])

    def __call__(self, image):
        """One image: Equinox leaves the batch to jax.vmap, and has channels first."""
        hidden = jax.nn.relu(self.first(jnp.moveaxis(image, -1, 0)))
        hidden = jax.nn.relu(self.second(hidden))
        return self.output(hidden.ravel())


def init(key):
    params, _ = eqx.partition(Network(key), eqx.is_inexact_array)
    return params


# Everything that is not an array.
_, STRUCTURE = eqx.partition(
    eqx.filter_eval_shape(Network, jax.random.key(0)), eqx.is_inexact_array
)


def network(params, images):
    return jax.vmap(eqx.combine(params, STRUCTURE))(images)


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

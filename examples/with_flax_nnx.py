"""Train a Flax NNX network.

    pip install -e ".[examples]" flax
    python with_flax_nnx.py

`nnx.split` takes the parameters out of the model, and `nnx.merge` puts them back. Prints the test
accuracy after ten epochs, about 97.5 %.
"""

import jax
from digits import accuracy, batches, cross_entropy, load
from flax import nnx

import adaptive_jax as aj


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.output = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, images):
        hidden = jax.nn.relu(self.first(images))
        hidden = jax.nn.relu(self.second(hidden))
        return self.output(hidden.reshape(len(hidden), -1))


# What a network is, without its numbers.
STRUCTURE = nnx.graphdef(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))


def init(key):
    return nnx.state(Network(nnx.Rngs(key)), nnx.Param)


def loss_function(params, batch):
    images, labels = batch
    return cross_entropy(nnx.merge(STRUCTURE, params)(images), labels)


def main():
    train, (test_images, test_labels) = load()
    state = aj.TrainState.create(init(jax.random.key(0)), aj.adam(0.003))
    state, _ = aj.fit(state, aj.train_step(loss_function), batches(*train))
    network = nnx.merge(STRUCTURE, state.params)
    print(f"test accuracy: {accuracy(network(test_images), test_labels):.2f} %")


if __name__ == "__main__":
    main()

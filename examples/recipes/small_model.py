"""A network of three layers and data that another one makes: what the recipes train."""

import functools

import jax
import jax.numpy as jnp


def init(key, width=64):
    sizes = {"layer_0": (16, width), "layer_1": (width, width), "head": (width, 4)}
    return {
        name: {
            "kernel": jax.random.normal(each, size) * size[0] ** -0.5,
            "bias": jnp.zeros(size[1]),
        }
        for each, (name, size) in zip(jax.random.split(key, 3), sizes.items(), strict=True)
    }


def network(params, x):
    for layer in (params["layer_0"], params["layer_1"]):
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(network(params, x) - y))


@functools.partial(jax.jit, static_argnums=1)
def sample(key, size):
    x = jax.random.normal(key, (size, 16))
    return x, network(init(jax.random.key(100)), x)


def batches(count, size=64):
    for key in jax.random.split(jax.random.key(1), count):
        yield sample(key, size)

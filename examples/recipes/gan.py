"""A GAN: two networks, two optimizers, one step. Points on a circle."""

import jax
import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj


def init(key, *sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(key, (m, n)) * m**-0.5, jnp.zeros(n)) for key, m, n in pairs]


def network(layers, x):
    for weights, bias in layers[:-1]:
        x = jax.nn.leaky_relu(x @ weights + bias[None], 0.2)
    weights, bias = layers[-1]
    return x @ weights + bias[None]


def circle(key):
    angles = jax.random.uniform(key, (256, 1), maxval=2 * jnp.pi)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def start():
    keys = jax.random.split(jax.random.key(0))
    return {"generator": init(keys[0], 8, 32, 32, 2), "critic": init(keys[1], 2, 32, 32, 1)}


def real_or_fake(critic, real, fake):
    of_real, of_fake = (
        jax.nn.softplus(-network(critic, real)),
        jax.nn.softplus(network(critic, fake)),
    )
    return jnp.mean(of_real) + jnp.mean(of_fake)


def fools(critic, fake):
    return jnp.mean(jax.nn.softplus(-network(critic, fake)))


def radius(generator):
    points = network(generator, jax.random.normal(jax.random.key(9), (1000, 8)))
    return jnp.linalg.norm(points, axis=1)


def loss(params, key):
    real_key, fake_key = jax.random.split(key)
    fake = network(params["generator"], jax.random.normal(fake_key, (256, 8)))
    as_data = jax.lax.stop_gradient  # each network sees the other one as data
    of_critic = real_or_fake(params["critic"], circle(real_key), as_data(fake))
    return of_critic + fools(as_data(params["critic"]), fake)


two = {"generator": aj.adam(1e-3, b1=0.5), "critic": aj.adam(2e-3, b1=0.5)}
tx = aj.partition(two, {name: name for name in two})
state = aj.TrainState.create(start(), tx)
state, history = aj.fit(state, aj.train_step(loss), jax.random.split(jax.random.key(1), 500))

losses = history["loss"]
found = np.array(radius(state.params["generator"]))
print(f"distance from the centre: {found.mean():.3f} +- {found.std():.3f}, 1 in the data")

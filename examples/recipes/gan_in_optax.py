"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


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


of_generator, of_critic = optax.adam(1e-3, b1=0.5), optax.adam(2e-3, b1=0.5)
params = start()
generator, critic = params["generator"], params["critic"]
generator_state, critic_state = of_generator.init(generator), of_critic.init(critic)


@functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
def step(generator, critic, generator_state, critic_state, key):
    real_key, fake_key = jax.random.split(key)
    noise = jax.random.normal(fake_key, (256, 8))
    fake = network(generator, noise)

    def generator_loss(generator):
        return fools(critic, network(generator, noise))

    critic_value, critic_gradients = jax.value_and_grad(real_or_fake)(
        critic, circle(real_key), fake
    )
    generator_value, generator_gradients = jax.value_and_grad(generator_loss)(generator)
    updates, critic_state = of_critic.update(critic_gradients, critic_state, critic)
    critic = optax.apply_updates(critic, updates)
    updates, generator_state = of_generator.update(generator_gradients, generator_state, generator)
    generator = optax.apply_updates(generator, updates)
    return generator, critic, generator_state, critic_state, critic_value + generator_value


values = []
for key in jax.random.split(jax.random.key(1), 500):
    *rest, value = step(generator, critic, generator_state, critic_state, key)
    generator, critic, generator_state, critic_state = rest
    values.append(value)

losses = np.array(values)
found = np.array(radius(generator))
print(f"distance from the centre: {found.mean():.3f} +- {found.std():.3f}, 1 in the data")

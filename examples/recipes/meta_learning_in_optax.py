"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def network(params, x):
    hidden = jnp.tanh(x @ params["first"] + params["bias"][None])
    return hidden @ params["last"]


def error(params, x, y):
    return jnp.mean(jnp.square(network(params, x) - y))


def task(key):
    """Ten points of a wave to learn from, and ten to be judged by."""
    keys = jax.random.split(key, 3)
    height, phase = (jax.random.uniform(key, minval=0.5, maxval=3.0) for key in keys[:2])
    x = jax.random.uniform(keys[2], (2, 10, 1), minval=-3.0, maxval=3.0)
    return x, height * jnp.sin(x + phase)


def start():
    keys = jax.random.split(jax.random.key(0))
    first, last = jax.random.normal(keys[0], (1, 40)), jax.random.normal(keys[1], (40, 1)) * 0.1
    weights = {"first": first, "bias": jnp.zeros(40), "last": last}
    return {"weights": weights, "log_rate": jnp.log(0.01)}


def adapted(params, x, y):
    tx, weights = optax.sgd(jnp.exp(params["log_rate"])), params["weights"]
    state = tx.init(weights)
    for _ in range(3):
        updates, state = tx.update(jax.grad(error)(weights, x, y), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights


def loss(params, key):
    def of_task(key):
        x, y = task(key)
        return error(adapted(params, x[0], y[0]), x[1], y[1])

    return jnp.mean(jax.vmap(of_task)(jax.random.split(key, 32)))


tx = optax.adam(1e-2)
params = start()
state = tx.init(params)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, key):
    value, gradients = jax.value_and_grad(loss)(params, key)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for key in jax.random.split(jax.random.key(1), 150):
    params, state, value = step(params, state, key)
    values.append(value)

losses = np.array(values)
rate = jnp.exp(params["log_rate"])
print(
    f"after three steps: {losses[0]:.3f} before, {losses[-20:].mean():.3f} after; rate {rate:.3f}"
)

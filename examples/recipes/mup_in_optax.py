"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_model import batches, init, loss

BASE = 32


def start(width):
    params = init(jax.random.key(0), width)
    head = {"kernel": jnp.zeros((width, 4)), "bias": jnp.zeros(4)}
    return params | {"head": head}


labels = {
    "layer_0": "rate",
    "layer_1": {"kernel": "narrower", "bias": "rate"},
    "head": {"kernel": "narrower", "bias": "rate"},
}


def optimizer(rate, narrower):
    return optax.partition({"rate": optax.adam(rate), "narrower": optax.adam(narrower)}, labels)


@functools.partial(jax.jit, donate_argnums=(2, 3))
def step(rate, narrower, params, state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = optimizer(rate, narrower).update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for width in (32, 128):
    for rate in (1e-3, 1e-2, 1e-1):
        narrower = rate * BASE / width
        params = start(width)
        state = optimizer(rate, narrower).init(params)
        for batch in batches(100):
            params, state, value = step(rate, narrower, params, state, batch)
        values.append(value)

losses = np.array(values)
for width, row in zip((32, 128), losses.reshape(2, 3), strict=True):
    print(
        f"width {width}: loss {row.round(4)}, the best rate is {(1e-3, 1e-2, 1e-1)[row.argmin()]}"
    )

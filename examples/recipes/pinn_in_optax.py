"""The same with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def u(params, x):
    hidden = jnp.tanh(x * params["first"] + params["bias"])
    return x * (jnp.pi - x) * (hidden @ params["last"])  # 0 at both ends


def loss(params, points):
    second = jax.vmap(jax.grad(jax.grad(u, argnums=1), argnums=1), in_axes=(None, 0))
    return jnp.mean(jnp.square(second(params, points) + jnp.sin(points)))


def start():
    keys = jax.random.split(jax.random.key(0))
    first, last = (jax.random.normal(key, (20,)) for key in keys)
    return {"first": first, "bias": jnp.zeros(20), "last": last * 0.1}


points = jnp.linspace(0.0, jnp.pi, 50)
params = start()
adam, lbfgs = optax.adam(1e-2), optax.lbfgs()


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(tx, params, state):
    value, gradients = jax.value_and_grad(loss)(params, points)
    more = {}
    if tx is lbfgs:
        more = {"value": value, "grad": gradients, "value_fn": lambda params: loss(params, points)}
    updates, state = tx.update(gradients, state, params, **more)
    return optax.apply_updates(params, updates), state, value


values = []
for tx, steps in ((adam, 200), (lbfgs, 100)):
    state = jax.tree.map(jnp.copy, tx.init(params))  # L-BFGS's holds the parameters themselves
    for _ in range(steps):
        params, state, value = step(tx, params, state)
        values.append(value)

losses = np.array(values)
error = jnp.abs(jax.vmap(u, in_axes=(None, 0))(params, points) - jnp.sin(points)).max()
print(f"loss {losses[199]:.1e} after Adam, {losses[-1]:.1e} after L-BFGS; error {error:.1e}")

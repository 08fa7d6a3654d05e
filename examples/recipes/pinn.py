"""A network that solves u'' = -sin x with u(0) = u(pi) = 0: Adam first, L-BFGS behind it."""

import itertools

import jax
import jax.numpy as jnp
import optax

import adaptive_jax as aj


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
tx = aj.switch(aj.adam(1e-2), optax.lbfgs(), when=200)
state = aj.TrainState.create(start(), tx)
state, history = aj.fit(state, aj.train_step(loss, metrics=["loss"]), itertools.repeat(points, 300))

losses = history["loss"]
error = jnp.abs(jax.vmap(u, in_axes=(None, 0))(state.params, points) - jnp.sin(points)).max()
print(f"loss {losses[199]:.1e} after Adam, {losses[-1]:.1e} after L-BFGS; error {error:.1e}")

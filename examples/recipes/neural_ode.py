"""A neural ODE with Diffrax: a spiral, learnt from where it starts and where it goes.

pip install -e ".[recipes]"
"""

import diffrax
import jax
import jax.numpy as jnp

import adaptive_jax as aj

TIMES = jnp.linspace(0.0, 2.0, 20)
MATRIX = jnp.array([[-0.3, 2.0], [-2.0, -0.3]])


def solved(field, params, start):
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), 0.0, 2.0, 0.1, start, params,
        saveat=diffrax.SaveAt(ts=TIMES),
    )  # fmt: skip
    return found.ys


def network(t, point, params):
    return jnp.tanh(point @ params["first"] + params["bias"]) @ params["last"]


def loss(params, starts):
    paths = jax.vmap(lambda start: solved(network, params, start))(starts)
    expected = jax.vmap(lambda start: solved(lambda t, x, matrix: x @ matrix, MATRIX, start))(
        starts
    )
    return jnp.mean(jnp.square(paths - expected))


keys = jax.random.split(jax.random.key(0), 203)
first, last = jax.random.normal(keys[0], (2, 32)), jax.random.normal(keys[1], (32, 2)) * 0.1
params = {"first": first, "bias": jnp.zeros(32), "last": last}
starts = (jax.random.uniform(key, (16, 2), minval=-2.0, maxval=2.0) for key in keys[3:])
state = aj.TrainState.create(params, aj.adam(1e-2))
state, history = aj.fit(state, aj.train_step(loss), starts)

losses = history["loss"]
print(f"loss {losses[0]:.4f} before, {losses[-1]:.4f} after")

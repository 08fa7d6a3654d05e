"""The training runs that tests sweep over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

STEPS = 20
RATES = np.array([0.01, 0.1, 0.5, 1.0])


def start(seed):
    return jax.random.normal(jax.random.key(seed), (3,))


def loss(w):
    return jnp.sum(jnp.array([1.0, 2.0, 4.0]) * w**2)


def train(learning_rate, b1=0.9, *, seed=0, make=aj.adam, **options):
    """The curve of the losses of a small quadratic."""
    tx = make(learning_rate, b1, **options) if make is aj.adam else make(learning_rate)
    w = start(seed)

    def body(carry, _):
        w, state = carry
        value, gradient = jax.value_and_grad(loss)(w)
        updates, state = tx.update(gradient, state, w)
        return (optax.apply_updates(w, updates), state), value

    return jax.lax.scan(body, (w, tx.init(w)), None, length=STEPS)[1]


def diverging(learning_rate, seed):
    """A loss that is lost at large learning rates, with all seeds but the first."""
    return jnp.where(
        (learning_rate > 1) & (seed > 0), jnp.nan, learning_rate + 0.1 * seed.astype(float)
    )

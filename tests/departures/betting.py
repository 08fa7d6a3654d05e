"""Rows of rules/betting.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import adaptive_jax as aj

from .row import Departure, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def rate_of_cocob_of_optax():
    def steps(library, rate):
        return np.stack(updates_of(library.cocob(rate), GRADIENTS, jnp.ones(3)))

    np.testing.assert_allclose(steps(contrib, 0.1), steps(contrib, 1.0), rtol=1e-3)
    np.testing.assert_allclose(steps(aj, 1.0), steps(contrib, 1.0), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(steps(aj, 0.1)[0], 0.1 * steps(aj, 1.0)[0], rtol=1e-3, atol=1e-7)


def offset_of_mechanic_of_optax():
    """Δ is a sum of steps: told from parameters that have hardly moved, it is a rounding error."""
    one, params, offsets = jnp.full(3, 1.0), jnp.full(3, 1e3), []
    ours, theirs = aj.mechanize(aj.sgd(1.0)), contrib.mechanize(optax.sgd(1.0))
    for tx in (ours, theirs):
        state, where = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(one, state, where)
            where = where + updates
        offsets.append((state, where))
    np.testing.assert_allclose(offsets[0][0][1].delta, -3.0)
    state, where = offsets[1]
    told = (where - state.x0) / state.s.sum()
    assert np.abs(told + 3).max() > 1


DEPARTURES = [
    Departure("cocob", "optax", "its learning rate does nothing", rate_of_cocob_of_optax),
    Departure(
        "mechanize",
        "optax",
        "the sum of steps is told from the parameters, which lose it to rounding",
        offset_of_mechanic_of_optax,
    ),
]

"""Rows of rules/polyak.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import adaptive_jax as aj

from .row import Departure


def decay_of_optax():
    """θ ← (θ - τd)/(1 + ηλ): optax leaves τd undivided."""
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    for name in ("momo", "momo_adam"):
        steps = []
        for library in (aj, contrib):
            tx = getattr(library, name)(1.0, weight_decay=0.5)
            updates, _ = tx.update(gradient, tx.init(params), params, value=jnp.float32(0.1))
            steps.append(np.asarray(updates))
        shrunk = -0.5 / 1.5 * params
        np.testing.assert_allclose(steps[0] - shrunk, (steps[1] - shrunk) / 1.5, rtol=1e-5)


def scaling_of_optax():
    """s·min(f/‖g‖², γ): optax takes ‖sg‖, so that half the scale is twice the step."""
    params = jnp.array([3.0, 4.0])

    def step(library, scaling):
        tx = library.polyak_sgd(100.0, scaling)
        updates, _ = tx.update(2 * params, tx.init(params), params, value=jnp.sum(params**2))
        return updates

    np.testing.assert_allclose(step(optax, 0.5), 2 * step(optax, 1.0), rtol=1e-6)
    np.testing.assert_allclose(step(aj, 0.5), 0.5 * step(aj, 1.0), rtol=1e-6)


DEPARTURES = [
    Departure("momo", "optax", "weight decay does not shrink the step", decay_of_optax),
    Departure("polyak_sgd", "optax", "the step grows where `scaling` falls", scaling_of_optax),
]

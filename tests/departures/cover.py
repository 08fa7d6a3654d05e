"""Rows of rules/cover.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

from .row import Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 3, 2)), jnp.float32)


def sm3_of_optax():
    """Gradients are large beside its ε, and so the updates are the same; small ones are not divided."""
    ours, theirs = (updates_of(x.sm3(0.1), GRADIENTS, jnp.ones((3, 2))) for x in (aj, optax))
    assert apart(ours, theirs) < 1e-4
    small = 1e-6 * GRADIENTS[:1]
    ours, theirs = (updates_of(x.sm3(1.0), small, jnp.ones((3, 2)))[0] for x in (aj, optax))
    np.testing.assert_allclose(np.abs(ours), 0.1, rtol=1e-3)
    assert np.all(np.abs(theirs) < 0.01)


def scalars_of_sm3_of_optax():
    one = jnp.ones(())
    with pytest.raises(IndexError):
        updates_of(optax.sm3(0.1), [one], one)
    np.testing.assert_allclose(updates_of(aj.sm3(0.1), [one], one)[0], -0.01, rtol=1e-6)


DEPARTURES = [
    Departure("sm3", "optax", "ε = 1e-8 in the root, where 0/0 = 0 is meant", sm3_of_optax),
    Departure(
        "sm3", "optax", "arrays of shape () fail with an IndexError", scalars_of_sm3_of_optax
    ),
]

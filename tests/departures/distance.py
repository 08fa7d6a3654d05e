"""Rows of rules/distance.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from optax import contrib

import adaptive_jax as aj

from .row import Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def bfloat16_of_optax(name, entry, distance):
    """In float32 both are the same; in bfloat16, whose sums stand still, optax keeps all in that."""
    ours, theirs = (updates_of(getattr(x, name)(), GRADIENTS, jnp.ones(5)) for x in (aj, contrib))
    assert apart(ours, theirs) < 1e-4
    params = jnp.ones(5, jnp.bfloat16)
    assert getattr(getattr(contrib, name)().init(params)[1], entry).dtype == jnp.bfloat16
    assert getattr(getattr(aj, name)().init(params)[0], distance).dtype == jnp.float32


def dog_of_optax():
    bfloat16_of_optax("dog", "max_dist", "distance")


def dowg_of_optax():
    bfloat16_of_optax("dowg", "estim_sq_dist", "squared_distance")


LOWEST = "the distance is in the lowest dtype of the parameters; in float32 agrees"

DEPARTURES = [
    Departure("dog", "optax", LOWEST, dog_of_optax),
    Departure("dowg", "optax", LOWEST, dowg_of_optax),
]

"""Rows of rules/normalized.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 3, 2)), jnp.float32)


def novograd_of_optax():
    for settings in ({}, {"weight_decay": 0.3, "b1": 0.95, "b2": 0.98}):
        ours, theirs = (
            updates_of(x.novograd(0.1, **settings), GRADIENTS, jnp.ones((3, 2)))
            for x in (aj, optax)
        )
        assert apart(ours, theirs) < 1e-5


def fromage_of_optax():
    ours, theirs = (updates_of(x.fromage(0.1), GRADIENTS, jnp.ones((3, 2))) for x in (aj, optax))
    assert apart(ours, theirs) < 1e-5


DEPARTURES = [
    Departure("novograd", "optax", f"{AGREES}, with the first version's β", novograd_of_optax),
    Departure("fromage", "optax", AGREES, fromage_of_optax),
]

"""Rows of rules/adamax.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def adamaxw_of_optax():
    ours, theirs = (updates_of(x.adamaxw(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    assert apart(ours, theirs) < 1e-5


DEPARTURES = [Departure("adamaxw", "optax", AGREES, adamaxw_of_optax)]

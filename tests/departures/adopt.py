"""Rows of rules/adopt.py."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def adopt_of_optax():
    for settings in ({}, {"nesterov": True}, {"use_clipping": False, "b1": 0.5}):
        ours = updates_of(aj.adopt(0.1, **settings), GRADIENTS, jnp.ones(5))
        theirs = updates_of(optax.contrib.adopt(0.1, **settings), GRADIENTS, jnp.ones(5))
        assert np.all(ours[0] == 0)
        assert apart(ours, theirs) < 1e-5
    assert "weight_decay" not in inspect.signature(optax.contrib.adopt).parameters
    assert "weight_decay" in inspect.signature(aj.adopt).parameters


DEPARTURES = [
    Departure("adopt", "optax", "no weight decay, which the authors' code has", adopt_of_optax)
]

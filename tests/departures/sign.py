"""Rows of rules/sign.py."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .factored import in_keras, keras_on_jax
from .row import AGREES, Departure, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def lion_of_optax():
    ours, theirs = (updates_of(x.lion(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def lion_of_keras():
    keras = keras_on_jax()
    theirs, _ = in_keras(keras.optimizers.Lion(0.1), GRADIENTS, jnp.ones(5))
    np.testing.assert_allclose(
        updates_of(aj.lion(0.1, weight_decay=0.0), GRADIENTS, jnp.ones(5)), theirs, rtol=1e-5
    )


def signum_of_optax():
    ours, theirs = (updates_of(x.signum(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert "weight_decay" not in inspect.signature(optax.signum).parameters
    decayed = updates_of(aj.signum(0.1, weight_decay=0.5), GRADIENTS[:1], jnp.ones(5))[0]
    np.testing.assert_allclose(decayed, ours[0] - 0.1 * 0.5, rtol=1e-6)


DEPARTURES = [
    Departure("lion", "optax", AGREES, lion_of_optax),
    Departure("lion", "keras", AGREES, lion_of_keras, slow=True),
    Departure("signum", "optax", "no weight decay, which the paper has", signum_of_optax),
]

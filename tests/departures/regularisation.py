"""Rows of rules/regularisation.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .factored import GRADIENTS, PARAMS, in_keras, keras_on_jax
from .row import AGREES, Departure, apart, updates_of


def ftrl_of_keras():
    keras = keras_on_jax()

    theirs, _ = in_keras(
        keras.optimizers.Ftrl(
            0.1, l1_regularization_strength=0.1, l2_regularization_strength=0.05, beta=0.5
        ),
        GRADIENTS,
        jnp.zeros((8, 6)),
    )  # fmt: skip
    ours = aj.ftrl(0.1, beta=0.5, l1=0.1, l2=0.1, initial_accumulator_value=0.1)
    assert apart(updates_of(ours, GRADIENTS, jnp.zeros((8, 6))), theirs) < 5e-6
    (first,), _ = in_keras(keras.optimizers.Ftrl(0.1), 0 * GRADIENTS[:1], PARAMS)
    np.testing.assert_allclose(first, -PARAMS, rtol=1e-6)
    (still,) = updates_of(aj.ftrl(0.1), 0 * GRADIENTS[:1], PARAMS)
    np.testing.assert_allclose(still, 0, atol=1e-6)


def nonnegative_of_optax():
    ours, theirs = (
        updates_of(x.chain(x.sgd(0.5), x.keep_params_nonnegative()), GRADIENTS, abs(PARAMS))
        for x in (aj, optax)
    )
    assert apart(ours, theirs) < 1e-6


DEPARTURES = [
    Departure(
        "ftrl", "keras", "starts with z = 0: the first step moves parameters to 0; takes l2 twice",
        ftrl_of_keras, slow=True,
    ),
    Departure("keep_params_nonnegative", "optax", AGREES, nonnegative_of_optax),
]  # fmt: skip

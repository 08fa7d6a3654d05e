"""Rows of rules/differences.py."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def adan_of_optax():
    """With 1 - β₂ in both places, ours would be theirs: with β₂ = ½ they are the same."""
    settings = {"b2": 0.5, "eps_root": 0.0}
    same = (updates_of(x.adan(0.1, **settings), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    assert apart(*same) < 1e-5
    ours, theirs = (
        updates_of(x.adan(0.1, eps_root=0.0), GRADIENTS, jnp.ones(5)) for x in (aj, optax)
    )
    assert apart(ours, theirs) > 0.1


def decay_of_adan_of_optax():
    zeros, theta = jnp.zeros((1, 5)), jnp.full(5, 2.0)
    ours, theirs = (updates_of(x.adan(0.5, weight_decay=0.4), zeros, theta)[0] for x in (aj, optax))
    np.testing.assert_allclose(theta + ours, 2.0 / (1 + 0.5 * 0.4), rtol=1e-6)
    np.testing.assert_allclose(theta + theirs, 2.0 * (1 - 0.5 * 0.4), rtol=1e-6)


def root_of_adan_of_optax():
    """Small gradients: scale_by_adan has no ε in the root there, and adan has 1e-8."""
    small = 1e-5 * jnp.sign(GRADIENTS[:1])
    ours, theirs = (updates_of(x.adan(1.0), small, jnp.ones(5))[0] for x in (aj, optax))
    np.testing.assert_allclose(np.abs(ours), 1.0, rtol=2e-3)
    assert np.all(np.abs(theirs) < 0.2)


def momentum_of_optimistic_adam_of_optax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in ("optimistic_adam", "optimistic_adam_v2"):
            mine, theirs = getattr(aj, name), getattr(optax, name)
            one, other = (updates_of(x(0.1), GRADIENTS, jnp.ones(5)) for x in (mine, theirs))
            assert apart(one, other) > 0.01
            same = updates_of(mine(0.1, nesterov=True), GRADIENTS, jnp.ones(5))
            assert apart(same, other) < 1e-5


def optimistic_gradient_descent_of_optax():
    ours, theirs = (
        updates_of(x.optimistic_gradient_descent(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax)
    )
    assert apart(ours, theirs) < 1e-6


DEPARTURES = [
    Departure("adan", "optax", "1 - β₂ where β₂ is meant, in two places", adan_of_optax),
    Departure("adan", "optax", "weight decay is not proximal", decay_of_adan_of_optax),
    Departure(
        "adan", "optax", "ε_root = 1e-8 by default in the whole optimizer", root_of_adan_of_optax
    ),
    Departure(
        "optimistic_adam",
        "optax",
        "Nesterov's momentum by default",
        momentum_of_optimistic_adam_of_optax,
    ),
    Departure("optimistic_gradient_descent", "optax", AGREES, optimistic_gradient_descent_of_optax),
]

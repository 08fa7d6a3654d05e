"""Rows of rules/belief.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def adabelief_of_optax():
    ours, theirs = (updates_of(x.adabelief(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    assert apart(ours, theirs) < 1e-5


def yogi_of_optax():
    """A zero gradient: the average starts at 1e-6 there."""
    zeros = jnp.zeros((3, 5))
    ours, theirs = (updates_of(x.yogi(1.0), zeros, jnp.ones(5)) for x in (aj, optax))
    assert np.all(np.asarray(ours) == 0)
    assert np.all(np.asarray(theirs) < -1e-5)


def bias_of_yogi_of_optax():
    """The paper's first step is η(1-β₁)g/(√v + ε): optax's is η·ĝ/(√v̂ + ε), ten times as long and more."""
    first = jnp.full((1, 5), 0.01)
    ours, theirs = (updates_of(x.yogi(1.0), first, jnp.ones(5))[0] for x in (aj, optax))
    paper = -0.1 * 0.01 / (np.sqrt(1e-6 + 1e-3 * 1e-4) + 1e-3)
    np.testing.assert_allclose(ours, paper, rtol=1e-5)
    assert np.all(np.abs(theirs / paper - 1) > 0.1)


DEPARTURES = [
    Departure("adabelief", "optax", AGREES, adabelief_of_optax),
    Departure(
        "yogi", "optax", "μ starts at 1e-6: parameters move without gradients", yogi_of_optax
    ),
    Departure(
        "yogi",
        "optax",
        "corrects the bias of averages that do not start at 0",
        bias_of_yogi_of_optax,
    ),
]

"""Rows of rules/mixtures.py."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def ademamix_of_optax():
    ours = updates_of(aj.ademamix(0.1), GRADIENTS, jnp.ones(5))
    assert apart(ours, updates_of(optax.contrib.ademamix(0.1), GRADIENTS, jnp.ones(5))) < 1e-5


def warm_ups_of_ademamix_of_optax():
    """Schedules are left to the caller, who is called with 0 at the first step, where the paper has 1."""
    assert not {"b3_warmup", "alpha_warmup"} & {
        *inspect.signature(optax.contrib.ademamix).parameters
    }
    counts = []

    def alpha(count):
        counts.append(int(count))
        return 5.0

    updates_of(optax.contrib.ademamix(0.1, alpha=alpha), GRADIENTS[:2], jnp.ones(5))
    assert counts == [0, 1]
    # Over two steps, α is half and then all of it.
    warm = updates_of(aj.ademamix(0.1, alpha_warmup=2), GRADIENTS[:2], jnp.ones(5))
    half, full = (
        updates_of(aj.ademamix(0.1, alpha=a), GRADIENTS[:2], jnp.ones(5)) for a in (2.5, 5.0)
    )
    np.testing.assert_array_equal(warm[0], half[0])
    np.testing.assert_array_equal(warm[1], full[1])


def weight_of_ademamix_of_optax():
    theirs = optax.contrib.scale_by_ademamix, optax.contrib.ademamix
    assert [inspect.signature(each).parameters["alpha"].default for each in theirs] == [6.0, 5.0]
    ours = aj.scale_by_ademamix, aj.ademamix
    assert [inspect.signature(each).parameters["alpha"].default for each in ours] == [5.0, 5.0]


def narrow_ademamix_of_optax():
    params, gradients = jnp.ones(5), GRADIENTS[:3]

    def scan(tx):
        def body(state, gradient):
            updates, state = tx.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(body, tx.init(params), gradients)[0]

    with pytest.raises(TypeError, match="carry"):
        scan(optax.contrib.ademamix(0.1, mu_dtype=jnp.bfloat16))
    state = scan(aj.ademamix(0.1, mu_dtype=jnp.bfloat16))[0]
    assert (state.mu.dtype, state.mu_slow.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert state.nu.dtype == jnp.float32


def simplified_ademamix_of_optax():
    settings = {"alpha": 2.0}
    ours = updates_of(aj.simplified_ademamix(0.1, **settings), GRADIENTS, jnp.ones(5))
    theirs = optax.contrib.simplified_ademamix(0.1, **settings)
    assert apart(ours, updates_of(theirs, GRADIENTS, jnp.ones(5))) < 1e-5


DEPARTURES = [
    Departure("ademamix", "optax", f"without warm-ups {AGREES}", ademamix_of_optax),
    Departure(
        "ademamix",
        "optax",
        "no warm-ups; schedules count from 0, not from 1",
        warm_ups_of_ademamix_of_optax,
    ),
    Departure(
        "ademamix",
        "optax",
        "α is 6 for chains and 5 in the whole optimizer",
        weight_of_ademamix_of_optax,
    ),
    Departure(
        "ademamix",
        "optax",
        "with mu_dtype the state changes its dtype: a scan fails",
        narrow_ademamix_of_optax,
    ),
    Departure("simplified_ademamix", "optax", AGREES, simplified_ademamix_of_optax),
]

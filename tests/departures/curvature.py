"""Rows of rules/curvature.py, and of the estimators that go with it."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import Departure

CURVATURE = jnp.array([1.0, 10.0, 100.0])


def objective(params):
    """Its Hessian is diagonal, so that every estimate of it is exact."""
    return 0.5 * jnp.sum(CURVATURE * params**2)


def directions_of_optax(steps, **options):
    """What optax's Sophia would descend, at a point that does not move."""
    tx, params = optax.contrib.sophia(1.0, weight_decay=0.0, **options), jnp.full(3, 0.01)
    state, found = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(jax.grad(objective)(params), state, params, obj_fn=objective)
        found.append(-updates)
    return np.stack(found)


def directions(steps, every, **options):
    """What ours would, with an estimate every so many steps."""
    tx, params = aj.scale_by_sophia(**options), jnp.full(3, 0.01)
    state, found = tx.init(params), []
    for step in range(steps):
        extra = {"hessian_diagonal": CURVATURE, "has_hessian_diagonal": step % every == 0}
        updates, state = tx.update(jax.grad(objective)(params), state, params, **extra)
        found.append(updates)
    return np.stack(found)


def sophia_of_optax_is_late():
    """Without momentum, g/(γh) is 0.01/γ in all coordinates as soon as h is what it is."""
    options = {"b1": 0.0, "b2": 0.0, "gamma": 1.0}
    theirs = directions_of_optax(3, update_interval=1, **options)
    np.testing.assert_array_equal(theirs[0], 1.0)  # The sign of the momentum: h is still 0.
    np.testing.assert_allclose(theirs[1:], 0.01, rtol=1e-5)
    np.testing.assert_allclose(directions(3, 1, **options), 0.01, rtol=1e-5)


def sophia_of_optax_corrects_the_momentum():
    """With h = H at once, the first direction of the paper is (1-β₁)g/(γh)."""
    options = {"b1": 0.9, "b2": 0.0, "gamma": 1.0}
    theirs = directions_of_optax(3, update_interval=1, **options)
    np.testing.assert_allclose(theirs[1:], 0.01, rtol=1e-5)
    momenta = 0.01 * (1 - 0.9 ** np.arange(1, 4))
    ours = directions(3, 1, **options)
    np.testing.assert_allclose(ours, np.tile(momenta[:, None], 3), rtol=1e-5)


def sophia_of_optax_has_one_estimator():
    """The objective is an argument of `update`, and nothing there draws labels."""
    names = [name for name in vars(optax.contrib) if "gauss" in name.lower()]
    assert not names
    assert "obj_fn" in inspect.signature(
        optax.contrib.hutchinson_estimator_diag_hessian().update
    ).parameters  # fmt: skip
    assert callable(aj.gauss_newton_bartlett)


def sam_of_optax_is_nan_at_zero():
    """Its normalised gradient, with which it looks around, divides 0 by 0."""
    zeros = jnp.zeros(3)
    theirs = optax.contrib.normalize()
    assert np.isnan(theirs.update(zeros, theirs.init(zeros))[0]).all()
    first, gradients, _ = aj.sam(0.1)(
        lambda w: jax.value_and_grad(objective)(w), zeros, None, 0, None
    )
    assert first == 0
    np.testing.assert_array_equal(gradients, 0.0)


DEPARTURES = [
    Departure(
        "sophia",
        "optax",
        "the estimate of a step counts from the next one on, and so the first step is sign(m)",
        sophia_of_optax_is_late,
    ),
    Departure(
        "sophia",
        "optax",
        "bias correction of the momentum, which the paper has not",
        sophia_of_optax_corrects_the_momentum,
    ),
    Departure(
        "sophia",
        "optax",
        "Hutchinson's estimator alone, with the objective as an argument of update",
        sophia_of_optax_has_one_estimator,
    ),
    Departure(
        "sam", "optax", "NaN at a gradient of zero; two calls a step", sam_of_optax_is_nan_at_zero
    ),
]

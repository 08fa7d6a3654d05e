"""Rows of rules/schedule_free.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib

import adaptive_jax as aj

from .factored import in_keras, keras_on_jax
from .row import Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
NAMES = ("schedule_free_sgd", "schedule_free_adamw")


def first_step_of_optax():
    """With 4 steps of warm-up, the first one is η/4 of a step in the paper's code, and none in optax."""
    for name in NAMES:
        ours, theirs = (
            updates_of(getattr(x, name)(0.1, warmup_steps=4), GRADIENTS, jnp.ones(3))
            for x in (aj, contrib)
        )
        np.testing.assert_array_equal(theirs[0], 0.0)
        assert (np.abs(ours[0]) > 1e-3 * np.abs(GRADIENTS[0])).all()
    # z and x are then the first step of η/4, of a weight that is all there is.
    np.testing.assert_allclose(
        updates_of(aj.schedule_free_sgd(0.1, 4), GRADIENTS, jnp.ones(3))[0],
        -0.025 * GRADIENTS[0],
        rtol=1e-4,
    )


def weights_of_optax():
    """What is weighted with the rate of step t is what step t-1 gave z."""

    def weight_sum(library, name, entry):
        tx, params = getattr(library, name)(0.1, warmup_steps=4), jnp.ones(3)
        state = tx.init(params)
        for gradient in GRADIENTS[:2]:
            _, state = tx.update(gradient, state, params)
        return float(getattr(state, entry))

    rates = 0.1 * np.array([1, 2, 3]) / 4
    for name in NAMES:
        assert np.isclose(weight_sum(contrib, name, "weight_sum"), (rates[:2] ** 2).sum())
        assert np.isclose(weight_sum(aj, name, "weight_sum"), (rates[:2] ** 2).sum())
        tx = getattr(contrib, name)(0.1, warmup_steps=4)
        # optax has moved z by the rates 0 and η/4, and weighted it by those of η/4 and η/2.
        moved = tx.update(GRADIENTS[0], tx.init(jnp.ones(3)), jnp.ones(3))[1].z - 1
        np.testing.assert_array_equal(moved, 0.0)


def sums_of_optax_in_bfloat16():
    """The sum of weights stands still after some 300 steps: x is a moving average of the last ones."""

    def sums(tx):
        params = jnp.ones(2, jnp.bfloat16)
        step = lambda _, state: tx.update(0 * params, state, params)[1]  # noqa: E731
        state = jax.jit(lambda: jax.lax.fori_loop(0, 1000, step, tx.init(params)))()
        return float(state.weight_sum)

    assert sums(contrib.schedule_free_sgd(1.0)) < 500
    assert sums(aj.schedule_free_sgd(1.0)) == 1000


def without_momentum_of_optax():
    """b1 = 0: optax divides by it; here it is refused, for there is no x in y and z then."""
    tx = contrib.schedule_free_sgd(0.1, b1=0.0)
    _, state = tx.update(GRADIENTS[0], tx.init(jnp.ones(3)), jnp.ones(3))
    found = contrib.schedule_free_eval_params(state, jnp.ones(3))
    assert not np.isfinite(found).all()
    with pytest.raises(ValueError, match=r"b1=0.0 is out of range in ScheduleFree: .* \(0, 1\]"):
        aj.schedule_free_sgd(0.1, b1=0.0)


def weights_of_keras():
    """c = 1/t: the steps of a warm-up count as much as the others. Without one both are the same."""
    keras = keras_on_jax()
    for warmup, least, most in ((0, 0.0, 1e-4), (4, 0.01, np.inf)):
        optimizer = keras.optimizers.ScheduleFreeAdamW(0.1, warmup_steps=warmup)
        theirs, _ = in_keras(optimizer, GRADIENTS, jnp.ones(3))
        ours = updates_of(aj.schedule_free_adamw(0.1, warmup or None), GRADIENTS, jnp.ones(3))
        assert least <= apart(ours, theirs) < most, warmup


DEPARTURES = [
    Departure(
        "schedule_free_adamw",
        "keras",
        "c = 1/t, so that steps of a warm-up weigh as much as others",
        weights_of_keras,
        slow=True,
    ),
    Departure(
        "schedule_free_adamw",
        "optax",
        "the first step of a warm-up does nothing",
        first_step_of_optax,
    ),
    Departure(
        "schedule_free_adamw", "optax", "weights are one step ahead of the steps", weights_of_optax
    ),
    Departure(
        "schedule_free_adamw",
        "optax",
        "with bfloat16 parameters the sum of weights stands still after 300 steps",
        sums_of_optax_in_bfloat16,
    ),
    Departure("schedule_free_sgd", "optax", "b1 = 0 evaluates to NaN", without_momentum_of_optax),
]

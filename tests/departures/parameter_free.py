"""Rows of rules/parameter_free.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from optax import contrib

import adaptive_jax as aj

from .row import Departure

CURVATURE = jnp.array([[1.0, 2, 3], [4, 5, 6]])
PARAMS = jnp.array([[1.0, -2, 0.5], [0.3, 1, -1]])


def after(tx, steps=10, params=PARAMS):
    """The parameters and the state after some steps on ½ΣA∘W²."""

    def body(_, carry):
        params, state = carry
        updates, state = tx.update((CURVATURE * params).astype(params.dtype), state, params)
        return (params + updates).astype(params.dtype), state

    return jax.jit(lambda: jax.lax.fori_loop(0, steps, body, (params, tx.init(params))))()


def prodigy_of_optax():
    """The authors' loss after ten steps is 10.349; with the bias corrected, d is 200 times smaller."""
    (ours, state), (_, theirs) = after(aj.prodigy()), after(contrib.prodigy())
    assert np.isclose(0.5 * jnp.sum(CURVATURE * ours**2), 10.349058, rtol=1e-6)
    assert 100 < state.d / theirs.estim_lr < 500
    assert np.isclose(after(aj.prodigy(bias_correction=True))[1].d, theirs.estim_lr, rtol=1e-4)


def dadapt_of_optax():
    (ours, state), (_, theirs) = after(aj.dadapt_adamw()), after(contrib.dadapt_adamw())
    assert np.isclose(0.5 * jnp.sum(CURVATURE * ours**2), 6.405274, rtol=1e-6)
    assert state.d / theirs.estim_lr > 500
    corrected = after(aj.dadapt_adamw(bias_correction=True))[1]
    assert np.isclose(corrected.d, theirs.estim_lr, rtol=1e-4)


def bfloat16_of_optax():
    """d and its sums are bfloat16: the run of the authors, ten steps, goes nowhere near theirs."""
    params = PARAMS.astype(jnp.bfloat16)
    for name in ("prodigy", "dadapt_adamw"):
        assert getattr(contrib, name)().init(params).estim_lr.dtype == jnp.bfloat16
        assert getattr(aj, name)().init(params).d.dtype == jnp.float32


DEPARTURES = [
    Departure("prodigy", "optax", "corrects a bias, which the paper does not", prodigy_of_optax),
    Departure(
        "prodigy",
        "optax",
        "the estimate is in the lowest dtype of the parameters",
        bfloat16_of_optax,
    ),
    Departure(
        "dadapt_adamw", "optax", "corrects a bias, which the paper does not", dadapt_of_optax
    ),
]

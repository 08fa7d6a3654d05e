"""MARS's matrix form: its gradients with less variance in front of Muon."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj
from tests import reference


def test_muon_behind_the_correction_is_the_matrix_form():
    """Yuan et al. (2024): c as in all forms, m ← β₁m + (1-β₁)c, θ ← θ - η√max(1, out/in)·NS(m)."""
    gradients = np.random.default_rng(0).normal(size=(8, 6, 4))
    last, corrected = gradients[0], []
    for g in gradients:
        c = g + 0.1 * 0.9 / (1 - 0.9) * (g - last)
        corrected.append(c / max(1.0, np.sqrt((c**2).sum())))
        last = g
    expected = reference.muon(np.stack(corrected), np.ones((6, 4)), 0.5, b1=0.9, nesterov=False)
    tx = aj.chain(aj.mars_correction(0.9, 0.1), aj.muon(0.5, b1=0.9, nesterov=False))
    with jax.enable_x64(True):
        params = jnp.ones((6, 4))
        update, state, found = jax.jit(tx.update), tx.init(params), []
        for g in gradients:
            step, state = update(jnp.asarray(g), state, params)
            found.append(step)
            params = params + step
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=1e-11)

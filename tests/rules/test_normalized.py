"""Directions of one length: what references do not see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import adaptive_jax as aj


def test_fromage_without_a_least_norm_only_shrinks_what_has_no_gradient():
    tx, params = aj.fromage(0.1, min_norm=0.0), jnp.array([3.0, 4.0])
    updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    np.testing.assert_allclose(params + updates, params / np.sqrt(1.01), rtol=1e-6)

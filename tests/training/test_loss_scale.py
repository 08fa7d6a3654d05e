"""A loss scale that adapts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj


def test_a_loss_scale_that_adapts():
    """In float16, gradients of 1e-8 are zero, and 2^16 is infinite."""

    def loss(params, batch):
        return jnp.sum(params * batch)

    batch = jnp.full(2, 1e-8)
    plain = aj.train_step(loss, compute_dtype=jnp.float16)
    state, _ = plain(aj.TrainState.create(jnp.ones(2), aj.sgd(1e6)), batch)
    np.testing.assert_array_equal(state.params, 1.0)

    def scaled_loss(params, batch):  # The gradient's cast is what underflows: batch is float32.
        return jnp.sum((params.astype(jnp.float16) * batch.astype(jnp.float16)).astype(jnp.float32))

    scale = aj.LossScale(2.0**17, growth_interval=3)
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale)
    step = aj.train_step(scaled_loss)
    state, _ = step(state, jnp.ones(2))  # 2^17 is infinite in float16: skipped.
    np.testing.assert_array_equal(state.params, 1.0)
    assert (state.loss_scale.scale, state.skipped) == (2.0**16, 1)
    state, _ = step(state, jnp.ones(2))
    assert (state.loss_scale.scale, state.skipped) == (2.0**15, 2)
    for _ in range(3):
        state, _ = step(state, jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.7, rtol=1e-6)
    assert (state.loss_scale.scale, state.skipped, state.loss_scale.good_steps) == (2.0**16, 2, 0)
    constant = aj.train_step(scaled_loss, loss_scale=1024.0)
    state, _ = constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.9, rtol=1e-6)
    bad = jnp.bool_(False)
    shrunk = [float(aj.LossScale(each).after(bad).scale) for each in (4.0, 1.5, 1.0, 0.25)]
    assert shrunk == [2.0, 1.0, 1.0, 0.25]
    with pytest.raises(ValueError, match="give one"):
        constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale), jnp.ones(2))


def test_a_loss_scale_belongs_to_its_user():
    scale = aj.LossScale(jnp.array(8.0), good_steps=jnp.array(0))
    step = aj.train_step(lambda params, batch: jnp.sum(params**2))
    states = [aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale) for _ in range(2)]
    for state in states:
        step(state, None)
    with pytest.raises(TypeError, match=r"adapts, and is in the state"):
        aj.train_step(lambda params, batch: 0.0, loss_scale=aj.LossScale())

"""Hyperparameters that are learned on the way: by the right derivatives, and to the right values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj


def run(tx, loss, params, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[0]


def test_what_is_kept_is_the_derivative_of_the_next_loss():
    """-η⟨g, d⟩/η and -η⟨g, d′⟩ by the η and β₁ that Adam really takes in one step."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        matrix = jnp.asarray(rng.normal(size=(5, 5)))

        def loss(w):
            return jnp.sum(jnp.cos(matrix @ w))

        tx = aj.adam_hd(0.05, b1_rate=0.02)
        w, state = run(tx, loss, jnp.asarray(rng.normal(size=5)), 6)
        grad = jax.grad(loss)(w)
        _, after = tx.update(grad, state, w)

        def after_a_step(rate, b1):
            before = state.b1_product
            mu = b1 * state.mu + (1 - b1) * grad
            nu = 0.999 * state.nu + 0.001 * grad**2
            root = jnp.sqrt(nu / (1 - 0.999**7)) + 1e-8
            return loss(w - rate * mu / (1 - before * b1) / root)

        by_rate, by_b1 = jax.grad(after_a_step, argnums=(0, 1))(after.rate, after.b1)
        there = w + tx.update(grad, state, w)[0]
        next_grad = jax.grad(loss)(there)
        np.testing.assert_allclose(-next_grad @ after.direction, by_rate, rtol=1e-9)
        np.testing.assert_allclose(-after.rate * (next_grad @ after.by_b1), by_b1, rtol=1e-9)


@pytest.mark.parametrize("first", [1e-4, 0.15])
def test_gradient_descent_finds_the_rate_that_a_quadratic_has(first):
    """In one dimension 1/λ, where one step is all."""
    tx = aj.sgd_hd(first, 0.1)
    w, state = run(tx, lambda w: 5 * w**2, jnp.ones(()), 120)
    assert 0.08 < float(state.rate) < 0.125
    assert abs(w) < 1e-6


def test_it_makes_up_for_a_rate_that_is_a_thousand_times_too_small():
    curvature = jnp.geomspace(1.0, 20.0, 10)

    def loss(w):
        return jnp.sum(curvature * w**2) / 2

    start = jnp.ones(10)
    by_chain = aj.chain(aj.scale_by_adam(), aj.scale_by_hypergradient(1e-5, 0.05))
    for learned, fixed in [
        (aj.sgd_hd(5e-5, 0.05), aj.sgd(5e-5)),
        (aj.adam_hd(1e-5, hypergradient_rate=0.05), aj.adam(1e-5)),
        (by_chain, aj.adam(1e-5)),
    ]:
        found, unlearned = (float(loss(run(tx, loss, start, 300)[0])) for tx in (learned, fixed))
        assert found < 0.02 * unlearned


def test_the_chain_is_adam_hd_of_the_paper():
    rng = np.random.default_rng(0)
    tx = aj.adam_hd(0.01)
    other = aj.chain(aj.scale_by_adam(), aj.scale_by_hypergradient(0.01))
    states = [each.init(jnp.ones(4)) for each in (tx, other)]
    for _ in range(10):
        grad, found = jnp.float32(rng.normal(size=4)), []
        for place, each in enumerate((tx, other)):
            updates, states[place] = each.update(grad, states[place], jnp.ones(4))
            found.append(updates)
        np.testing.assert_allclose(*found, rtol=1e-5)
    assert float(states[0].b1) == pytest.approx(0.9)
    np.testing.assert_allclose(states[0].rate, states[1][1].rate, rtol=1e-5)


def test_constant_gradients_leave_the_decay_rate_alone():
    """Their average is themselves, whatever β₁: what rounding makes of that has no say."""
    tx = aj.adam_hd(1e-3, b1_rate=0.02)
    state = tx.init(jnp.ones(7))
    grad = jnp.array(
        [0.3, -0.3, 0.3, 0.3, -0.3, -0.3, 0.3]
    )  # As Adam's direction, but for its length.
    for _ in range(30):
        _, state = tx.update(grad, state, jnp.ones(7))
    assert float(state.b1) == pytest.approx(0.9, abs=1e-6)
    assert float(state.rate) == pytest.approx(1e-3 * 1.02**29, rel=1e-3)


def test_the_metric_is_the_rate_in_force():
    step = aj.train_step(lambda w, batch: jnp.sum(w**2))
    state = aj.TrainState.create(jnp.ones(3), aj.sgd_hd(0.01, 0.1))
    for expected in (0.01, 0.011, 0.0121):
        state, metrics = step(state, 0.0)
        assert float(metrics["learning_rate"]) == pytest.approx(expected, rel=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate=0.0 is out of range"):
        aj.sgd_hd(0.0)
    with pytest.raises(TypeError, match="is a schedule in Hypergradient"):
        aj.sgd_hd(aj.schedules.constant_schedule(0.1))
    with pytest.raises(ValueError, match=r"learning rate"):
        aj.chain(aj.sgd_hd(0.1), aj.scale_by_learning_rate(0.1))
    state = aj.TrainState.create(jnp.ones(3), aj.sgd_hd(0.01))
    step = aj.train_step(lambda w, batch: jnp.sum(w**2))
    with pytest.raises(ValueError, match="has no learning rate that can be set: it finds its own"):
        aj.find_learning_rate(state, step, [0.0] * 4)

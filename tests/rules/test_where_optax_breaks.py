"""Fourteen ways in which optax 0.2.8 computes what it should not, each shown there and right here.

Every test first shows the defect in optax: it could not pass with arithmetic like optax's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj


@pytest.fixture(autouse=True)
def permissive(strict_jax):
    """optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def steps(tx, params, gradients):
    """The parameters and the state after these gradients."""
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def test_1_a_second_moment_of_bfloat16_parameters_decays():
    params, one, zero = (jnp.full(4, x, jnp.bfloat16) for x in (1.0, 1.0, 0.0))

    def nu_after(library):
        tx = library.scale_by_adam(b2=0.999)
        state = steps(tx, params, [one])[1]
        start = float(state.nu[0])
        state = jax.lax.fori_loop(
            0, 5000, lambda _, state: tx.update(zero, state, params)[1], state
        )
        return float(state.nu[0]) / start

    assert nu_after(optax) == 1.0
    assert nu_after(aj) == pytest.approx(0.999**5000, rel=1e-3)


def test_2_inject_hyperparams_with_bfloat16_parameters():
    params = jnp.ones(4, jnp.bfloat16)

    def updates_of(library):
        tx = optax.inject_hyperparams(library.adamw)(learning_rate=1e-3)
        return tx.update(params, tx.init(params), params)[0]

    assert not finite(updates_of(optax))
    np.testing.assert_allclose(updates_of(aj).astype(jnp.float32), -1e-3, rtol=0.01)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "amsgrad", "adamax"])
def test_3_zero_gradients_in_float16(name):
    zero = jnp.zeros(4, jnp.float16)

    def updates_of(library):
        tx = getattr(library, name)(1e-3)
        return tx.update(zero, tx.init(zero), zero)[0]

    assert not finite(updates_of(optax))
    np.testing.assert_array_equal(updates_of(aj), 0.0)


def test_4_large_gradients_in_float16():
    large, one = jnp.full(4, 300.0, jnp.float16), jnp.ones(4, jnp.float16)
    params = jnp.zeros(4, jnp.float16)

    def way(library):
        return steps(library.adam(1e-2), params, [large, *[one] * 20])[0]

    np.testing.assert_array_equal(way(optax), 0.0)  # It never moves again.
    assert (way(aj) < -0.01).all()


def test_5_centered_rmsprop_with_a_constant_gradient():
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)

    def finite_updates(library):
        tx = library.rmsprop(1e-3, eps=0.0, centered=True)
        state, update = tx.init(gradient), jax.jit(tx.update)
        for _ in range(300):
            updates, state = update(gradient, state)
        return float(jnp.isfinite(updates).mean())

    assert finite_updates(optax) < 0.95
    assert finite_updates(aj) == 1.0


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad"])
def test_6_a_zero_gradient_without_epsilon(name):
    zero = jnp.zeros(4)
    first = {"initial_accumulator_value": 0.0} if name == "adagrad" else {}

    def updates_of(library):
        tx = getattr(library, name)(1e-3, eps=0.0, **first)
        return tx.update(zero, tx.init(zero))[0]

    assert finite(updates_of(optax)) == (name == "adagrad")
    np.testing.assert_array_equal(updates_of(aj), 0.0)


def test_7_bfloat16_parameters_with_float32_gradients():
    params, gradients = jnp.ones(4, jnp.bfloat16), jnp.ones((3, 4))

    def scan(library):
        tx = library.adam(1e-3)

        def body(state, gradient):
            updates, state = tx.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(body, tx.init(params), gradients)

    with pytest.raises(TypeError, match="carry"):
        scan(optax)
    assert finite(scan(aj))


def test_one_gradient_without_a_square():
    """Not among the fourteen: in float32, (1e20)² is infinite, and stays so in every average of it."""
    params = jnp.zeros(2)
    gradients = [jnp.array([1e20, 1.0])] + [jnp.ones(2)] * 5
    moved, _ = steps(optax.rmsprop(0.1, 0.5), params, gradients)
    assert moved[0] == 0
    moved, _ = steps(aj.rmsprop(0.1, 0.5), params, gradients)
    assert finite(moved)
    assert moved[0] == pytest.approx(-0.1 / np.sqrt(0.5), rel=1e-6)


def test_such_a_gradient_is_remembered_and_clipping_is_the_cure():
    def step_after(tx, count):
        start = tx.update(jnp.array([1e20]), tx.init(jnp.zeros(1)))[1]
        one = jnp.ones(1)
        body = lambda _, state: tx.update(one, state)[1]  # noqa: E731
        return -float(tx.update(one, jax.lax.fori_loop(0, count, body, start))[0][0])

    assert step_after(aj.adam(1.0), 60_000) < 1e-3
    assert step_after(aj.adam(1.0), 100_000) == pytest.approx(1.0, rel=1e-3)
    for tx in (aj.adagrad(1.0), aj.amsgrad(1.0)):
        assert step_after(tx, 100_000) < 1e-15
    for tx in (aj.adam(1.0), aj.amsgrad(1.0)):
        assert step_after(aj.chain(aj.clip_by_global_norm(1.0), tx), 100) > 0.5


def test_8_the_global_norm_of_many_bfloat16_arrays():
    tree = [jnp.ones(100, jnp.bfloat16) for _ in range(2000)]
    truth = np.sqrt(2000 * 100)
    assert float(optax.tree.norm(tree)) < 0.5 * truth
    assert float(aj.global_norm(tree)) == pytest.approx(truth, rel=1e-5)
    fewer = tree[:50]  # Compiling all of them takes too long for the default run.
    updates, _ = aj.clip_by_global_norm(1.0).update(fewer, optax.EmptyState())
    np.testing.assert_allclose(updates[0].astype(jnp.float32), 5000**-0.5, rtol=0.01)


def test_9_a_nan_in_one_of_the_accumulated_gradients():
    params, one = jnp.zeros(4), jnp.ones(4)
    gradients = [one, jnp.nan * one, one, one, one]
    theirs = optax.MultiSteps(aj.sgd(0.1), 2).gradient_transformation()
    assert not finite(steps(theirs, params, gradients)[0])
    new, state = steps(aj.multi_steps(aj.sgd(0.1), 2), params, gradients)
    np.testing.assert_allclose(new, -0.2, rtol=1e-6)  # Two whole groups of the four good ones.
    assert state.skip_state.skipped == 1
    assert state.gradient_step == 2


@pytest.mark.parametrize("way", ["stochastic", "compensated"])
def test_10_small_updates_of_bfloat16_parameters(way):
    params = jnp.ones(1000, jnp.bfloat16)
    gradient = jnp.ones(1000, jnp.bfloat16)
    plain, _ = steps(optax.sgd(1e-3), params, [gradient] * 1000)
    np.testing.assert_array_equal(plain, 1.0)

    tx = aj.compensate(aj.sgd(1e-3)) if way == "compensated" else aj.sgd(1e-3)
    rounding = {"rounding": "stochastic"} if way == "stochastic" else {}

    def body(step, carry):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        numbered = {**rounding, "step": step} if rounding else {}
        return aj.apply_updates(params, updates, **numbered), state

    new, _ = jax.jit(lambda: jax.lax.fori_loop(0, 1000, body, (params, tx.init(params))))()
    new = new.astype(jnp.float32)
    # 1 - 1000 · 0.001, where 0.001 is a bfloat16: wrong by a thousandth of itself at most.
    if way == "compensated":
        np.testing.assert_allclose(new, 0.0, atol=5e-3)
    else:
        # A random walk of steps half as large as bfloat16's at 1; the mean is right.
        assert abs(float(new.mean())) < 5e-3
        assert float(new.std()) < 0.1


def test_11_bias_correction():
    gradient = jnp.ones(1)

    def first_moment(library):
        updates, _ = library.scale_by_adam(b1=0.999999, b2=0.5).update(
            gradient, library.scale_by_adam(b1=0.999999, b2=0.5).init(gradient)
        )
        return float(updates[0])  # The gradient, exactly, over its own size.

    assert abs(first_moment(optax) - 1) > 1e-3
    assert first_moment(aj) == pytest.approx(1.0, abs=1e-6)


def test_11_bias_correction_where_jit_has_rounded_the_decay_rate():
    """The average has the weights of the rounded one, and is divided by their sum."""
    gradient = jnp.ones(1)
    tx = aj.scale_by_adam(b1=0.999999, b2=0.5)
    exact = tx.update(gradient, tx.init(gradient))
    rounded = jax.jit(lambda tx, state: tx.update(gradient, state))(tx, tx.init(gradient))
    assert float(exact[1].mu[0]) == pytest.approx(1e-6, rel=1e-6)
    assert float(rounded[1].mu[0]) == pytest.approx(1.0 - np.float32(0.999999), rel=1e-6)
    assert abs(float(rounded[1].mu[0]) / 1e-6 - 1) > 1e-2
    for updates, _ in (exact, rounded):
        assert float(updates[0]) == pytest.approx(1.0, abs=1e-6)


def test_12_what_optax_cannot_express():
    """PyTorch's AMSGrad, NAdam and RMSprop under a schedule; `tests/interop` has the trajectories."""
    gradients = [jnp.array([scale]) for scale in (3.0, 1.0, -2.0, 0.5)]

    def updates_of(tx):
        state, all_updates = tx.init(gradients[0]), []
        for gradient in gradients:
            updates, state = tx.update(gradient, state, gradients[0])
            all_updates.append(updates)
        return np.concatenate(all_updates)

    falling = optax.exponential_decay(0.1, 1, 0.5)
    torch = aj.interop.torch
    theirs_with_momentum = optax.rmsprop(falling, 0.99, momentum=0.9, eps_in_sqrt=False)
    for ours, theirs in [
        (torch.adam(amsgrad=True), optax.amsgrad(1e-3)),
        (torch.nadam(lr=1e-3), optax.nadam(1e-3)),
        (torch.rmsprop(lr=falling, momentum=0.9), theirs_with_momentum),
    ]:
        assert np.abs(updates_of(ours) / updates_of(theirs) - 1).max() > 0.01


def test_13_a_measurement_keeps_its_structure_in_a_scan():
    params = jnp.ones(4)

    def scan(tx):
        def body(state, gradient):
            updates, state = tx.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(body, tx.init(params), jnp.ones((3, 4)))[0]

    measures = {"norm": optax.tree.norm}
    with pytest.raises(TypeError, match="carry"):
        scan(optax.chain(optax.monitor(measures), optax.sgd(0.1)))
    state = scan(aj.chain(aj.monitor({"norm": aj.global_norm}), aj.sgd(0.1)))
    assert optax.tree.get(state, "norm") == pytest.approx(2.0)


def test_14_a_second_moment_in_another_dtype_than_its_parameter():
    params = jnp.ones(4, jnp.bfloat16)
    assert optax.adam(1e-3, mu_dtype=jnp.float32).init(params)[0].nu.dtype == jnp.bfloat16
    assert aj.adam(1e-3).init(params)[0].nu.dtype == jnp.float32
    narrow = aj.adam(1e-3, storage={"nu": aj.Float(jnp.float16)})
    _, state = steps(narrow, jnp.ones(4), [jnp.ones(4)] * 3)
    assert state[0].nu.dtype == jnp.float16
    assert state[0].mu.dtype == jnp.float32

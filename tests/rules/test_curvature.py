"""Sophia and AdaHessian with estimates: the papers' formulas, the authors' numbers, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules.test_reference import TOLERANCE, assert_close, problem, trajectory

import adaptive_jax as aj
from tests.reference import curvature as reference

SOPHIA_G = {"eps_in_max": False, "eps": 1e-15}


def diagonals_of(gradients, dtype):
    """Estimates of both signs, of sizes that drift, and the steps that have one: 1, 4, 7, …"""
    noise = np.random.default_rng(3).normal(size=gradients.shape)
    found = np.abs(np.roll(gradients, 1, axis=0)) * (1 + noise)
    return found.astype(dtype).astype(np.float64), np.arange(len(gradients)) % 3 == 0


def updates_of(tx, gradients, params, diagonals, has, dtype):
    """Of steps in a scan, in which the estimates that are none are NaN: nobody may look at them."""
    given = np.where(has[(slice(None),) + (None,) * (gradients.ndim - 1)], diagonals, np.nan)
    trees = (jnp.asarray(x, dtype) for x in (gradients, params, given))

    @jax.jit
    def run(gradients, params, given, has):
        def step(state, inputs):
            g, param, diagonal, is_there = inputs
            extra = {"hessian_diagonal": diagonal, "has_hessian_diagonal": is_there}
            updates, state = tx.update(g, state, param, **extra)
            return state, updates

        return jax.lax.scan(step, tx.init(params[0]), (gradients, params, given, has))[1]

    return np.asarray(run(*trees, jnp.asarray(has)))


CASES = {
    "sophia": (aj.sophia, {"gamma": 1.0}),
    "sophia unclipped": (aj.sophia, {"gamma": 1.0, "clip_threshold": np.inf, "eps": 1e-3}),
    "sophia G": (aj.sophia, {"gamma": 1.0, "b1": 0.9, **SOPHIA_G}),
    "adahessian": (aj.adahessian, {"weight_decay": 0.3}),
    "adahessian power": (aj.adahessian, {"hessian_power": 0.5, "b2": 0.9}),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_follows_the_paper_with_an_estimate_every_third_step(name, dtype):
    (factory, settings), (gradients, first) = CASES[name], problem(dtype)
    diagonals, has = diagonals_of(gradients, dtype)
    if "eps_in_max" in settings:
        diagonals = np.abs(diagonals)
    formula = getattr(reference, factory.__name__)
    given = {"learning_rate": 0.1, **settings, "has": has}
    expected = formula(gradients, first, diagonals=diagonals, **given)
    params = trajectory(first, expected).astype(dtype).astype(np.float64)
    unclipped = {"weight_decay": 0.0, "diagonals": diagonals, "clip_threshold": np.inf}
    if factory is aj.adahessian:
        del unclipped["clip_threshold"]
    size = np.abs(formula(np.abs(gradients), first, **given | unclipped)) + 0.03 * np.abs(params)
    if (
        factory is aj.sophia
    ):  # Of estimates of both signs, rounding makes the curvature off by their size.
        all_positive = unclipped | {"diagonals": np.abs(diagonals)}
        curved = np.abs(formula(np.abs(gradients), first, **given | all_positive))
        size = size * np.maximum(1, size / np.where(curved > 0, curved, np.inf))
    with jax.enable_x64(dtype == "float64"):
        tx = factory(0.1, **settings)
        actual = updates_of(tx, gradients, params, diagonals, has, dtype)
    assert_close(actual, expected, size, TOLERANCE[dtype])


@pytest.mark.parametrize("sizes", [False, True])
def test_averages_over_windows_and_rows_and_leaves_the_rest(sizes):
    """Arrays of all ranks, those with five axes and with three, at which the authors' code fails, too."""
    settings = {"average_axes": {2: (1,), 3: (0,), 4: (0, 1)}, "average_sizes": sizes}
    generator = np.random.default_rng(0)
    for shape in [(), (3,), (2, 3), (2, 3, 4), (2, 2, 3, 4), (2, 1, 2, 2, 3)]:
        gradients, diagonals = generator.normal(size=(2, 5, *shape))
        has = np.ones(5, bool)
        expected = reference.adahessian(
            gradients, np.ones(shape), 0.1, diagonals=diagonals, **settings
        )
        params = trajectory(np.ones(shape), expected)
        with jax.enable_x64(True):
            tx = aj.adahessian(0.1, **settings)
            actual = updates_of(tx, gradients, params, diagonals, has, "float64")
        np.testing.assert_allclose(actual, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("gamma", "factory"), [(0.04, aj.sophia), (1.0, aj.sophia)], ids=["authors", "newton"]
)
def test_the_numbers_of_the_authors(gamma, factory):
    """Their SophiaG on ½ΣA∘W², η = 0.1, ρ = 0.04 and bs = 1, h = 0.01·g₁²: losses of ten steps.

    In PyTorch's float32. With γ = 1 the same steps are shorter, so that the numbers tell ρ.
    """
    curvature = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    params = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]], jnp.float32)
    tx = factory(0.1, gamma=gamma, weight_decay=0.0, **SOPHIA_G)
    state, losses = tx.init(params), []
    for step in range(10):
        gradient = jnp.float32(curvature) * params
        extra = {"hessian_diagonal": gradient**2, "has_hessian_diagonal": step == 0}
        updates, state = tx.update(gradient, state, params, **extra)
        params = params + updates
        losses.append(0.5 * np.sum(curvature * np.asarray(params, np.float64) ** 2))
    theirs = [
        8.789999,
        7.235,
        5.889999,
        4.754999,
        3.829999,
        3.114999,
        2.369999,
        1.834999,
        1.51,
        1.395,
    ]
    if gamma == 0.04:
        np.testing.assert_allclose(losses, theirs, rtol=2e-6)
    else:
        assert np.all(np.abs(np.array(losses) / theirs - 1) > 1e-3)


def test_an_estimate_counts_in_its_own_step_and_the_old_one_until_the_next():
    tx = aj.scale_by_sophia(b1=0.0, gamma=1.0)
    gradient, state = jnp.array([0.01]), tx.init(jnp.zeros(1))
    found = []
    for diagonal, has in ((4.0, True), (np.nan, False), (4.0, True)):
        extra = {"hessian_diagonal": jnp.array([diagonal]), "has_hessian_diagonal": has}
        direction, state = tx.update(gradient, state, **extra)
        found.append(float(direction[0]))
    np.testing.assert_allclose(found, [0.25, 0.25, 0.01 / (0.99 * 0.04 + 0.04)], rtol=1e-5)


def test_where_the_curvature_is_not_positive_the_step_has_its_largest_size():
    tx = aj.scale_by_sophia(b1=0.0, clip_threshold=2.0)
    gradient = jnp.array([1e-3, -1e-3, 0.0])
    extra = {"hessian_diagonal": jnp.array([-1.0, 0.0, -1.0]), "has_hessian_diagonal": True}
    direction, _ = tx.update(gradient, tx.init(gradient), **extra)
    np.testing.assert_array_equal(direction, [2.0, -2.0, 0.0])


@pytest.mark.parametrize("factory", [aj.sophia, aj.adahessian])
def test_without_an_estimator_the_error_says_what_to_write_and_that_works(factory):
    params, tx = jnp.ones(2), factory(0.1)
    with pytest.raises(ValueError, match=r"hessian_diagonal.*update\(gradients, state") as raised:
        tx.update(params, tx.init(params), params)
    message = str(raised.value)
    advice = message[message.index("aj.train_step(") : message.index(", or gradient=")]

    def loss(w, batch):
        return jnp.sum(batch * w**2)

    step = eval(advice, {"aj": aj, "loss": loss})
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0))
    state, _ = step(state, jnp.ones(2))
    assert np.all(np.asarray(state.params) < 1)
    other = message[message.index("gradient=aj.gauss") : message.index(" for Gauss")]
    scope = {"aj": aj, "sampled_loss": lambda w, batch, key: loss(w, batch)}
    step = aj.train_step(loss, **eval(f"dict({other})", scope))
    step(aj.TrainState.create(jnp.ones(2), tx, rng=jax.random.key(0)), jnp.ones(2))
    plain = aj.train_step(loss)
    with pytest.raises(ValueError, match=r"aj.hutchinson"):
        plain(aj.TrainState.create(jnp.ones(2), tx, rng=jax.random.key(0)), jnp.ones(2))


@pytest.mark.parametrize("axes", [{4: (4,)}, {2: ()}, {2: 1}, 3, {"2": (1,)}], ids=range(5))
def test_axes_that_are_not_there_are_refused(axes):
    with pytest.raises(ValueError, match=r"average_axes=.* in AdaHessian must be a dict"):
        aj.adahessian(0.1, average_axes=axes)


def test_what_optax_calls_otherwise_is_said():
    with pytest.raises(TypeError, match=r"'update_interval': the estimator has it, train_step"):
        aj.sophia(0.1, update_interval=5)


def test_accumulated_estimates_are_those_of_the_mini_steps_that_had_one():
    tx, plain = aj.multi_steps(aj.sophia(0.1, gamma=1.0), 2), aj.sophia(0.1, gamma=1.0)
    params, gradient, diagonal = jnp.ones(2), jnp.array([0.1, -0.2]), jnp.array([3.0, 5.0])
    state = tx.init(params)
    for has in (True, False):
        here = diagonal if has else jnp.zeros(2)
        extra = {"hessian_diagonal": here, "has_hessian_diagonal": has}
        updates, state = tx.update(gradient, state, params, **extra)
    extra = {"hessian_diagonal": diagonal, "has_hessian_diagonal": True}
    expected, _ = plain.update(gradient, plain.init(params), params, **extra)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)

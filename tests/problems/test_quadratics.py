"""Quadratics: their spectrum, their noise, and the published numbers of DeepOBS."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import crowded_valley
from problems.cases import KEY, losses_of_many_keys

from adaptive_jax import problems


@pytest.mark.parametrize("rotation", [True, False])
def test_the_hessian_has_the_spectrum(rotation):
    problem = problems.quadratic(dimension=20, condition=1e3, rotation=rotation)
    hessian = np.asarray(jax.jit(jax.hessian(problem.evaluate))(jnp.ones(20)), np.float64)
    spectrum = 10.0 ** np.linspace(-3, 0, 20)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), spectrum, rtol=1e-3)
    off_diagonal = hessian - np.diag(np.diag(hessian))
    assert (np.abs(off_diagonal).max() > 0.01) == rotation
    params = problem.init(KEY)
    np.testing.assert_allclose(problem.evaluate(params), params @ hessian @ params / 2, rtol=1e-5)
    np.testing.assert_allclose(problem.target, 1e-3 * np.trace(hessian) / 2, rtol=1e-5)


def test_the_largest_eigenvalue_is_one_in_one_dimension_too():
    problem = problems.quadratic(dimension=1, noise=1.0)
    np.testing.assert_allclose(jax.hessian(problem.evaluate)(jnp.ones(1)), [[1.0]], rtol=1e-6)
    assert problem.target is None


def test_the_rotation_is_the_problems_and_not_the_keys():
    params = problems.quadratic().init(KEY)
    values = [problems.quadratic(seed=seed).evaluate(params) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_the_noise_of_the_gradient_is_h_times_that_of_x():
    problem = problems.quadratic(dimension=5, condition=10.0, noise=0.5)
    hessian = np.asarray(jax.jit(jax.hessian(problem.evaluate))(jnp.ones(5)))
    params = problem.init(KEY)
    keys = jax.random.split(KEY, 20_000)
    gradients = jax.jit(jax.vmap(jax.grad(problem.loss), in_axes=(None, 0)))(params, keys)
    np.testing.assert_allclose(gradients.mean(0), hessian @ params, atol=0.02)
    covariance = np.cov(np.asarray(gradients), rowvar=False)
    np.testing.assert_allclose(covariance, 0.25 * hessian @ hessian, atol=0.01)
    losses = losses_of_many_keys(problem, params, 20_000)
    expected = problem.evaluate(params) + 0.25 * np.trace(hessian) / 2
    np.testing.assert_allclose(losses.mean(), expected, rtol=0.02)


def test_small_eigenvalues_keep_their_digits():
    problem = problems.quadratic(dimension=2, condition=1e9, seed=1)
    hessian = np.asarray(jax.jit(jax.hessian(problem.evaluate))(jnp.ones(2)), np.float64)
    flat = np.linalg.eigh(hessian)[1][:, 0]
    assert 0 <= problem.evaluate(jnp.asarray(flat, jnp.float32)) < 1e-8


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_hessian_of_a_matrix_regression_is_a_kronecker_product(noise):
    problem = problems.matrix_regression(5, 3, 1e2, 1e3, noise)
    start = problem.init(KEY)
    hessian = np.asarray(jax.jit(jax.hessian(problem.evaluate))(start)["w"]["w"], np.float64)
    left, right = (np.float64(each) for each in (problem.left, problem.right))
    expected = np.einsum("ik,jl->ijkl", left.T @ left, right @ right.T)
    np.testing.assert_allclose(hessian, expected, atol=1e-6)
    spectrum = np.outer(10.0 ** np.linspace(-2, 0, 5), 10.0 ** np.linspace(-3, 0, 3)).ravel()
    found = np.linalg.eigvalsh(hessian.reshape(15, 15))
    np.testing.assert_allclose(found, np.sort(spectrum), rtol=1e-2, atol=1e-7)
    # Its optimum, and what it is there and elsewhere.
    assert problem.evaluate({"w": problem.optimum}) == problem.minimum == 0.0
    distance = np.float64(start["w"]) - problem.optimum
    value = np.einsum("ij,ijkl,kl->", distance, expected, distance) / 2
    np.testing.assert_allclose(problem.evaluate(start), value, rtol=1e-5)
    data = left @ problem.optimum @ right
    residual = left @ np.float64(start["w"]) @ right - data
    np.testing.assert_allclose(np.sum(residual**2) / 2, value, rtol=1e-5)
    values = jax.vmap(problem.evaluate)(jax.vmap(problem.init)(jax.random.split(KEY, 4000)))
    share = max(1e-3, noise**2)
    np.testing.assert_allclose(problem.target, share * values.mean(), rtol=0.05)
    losses = losses_of_many_keys(problem, start, 4000)
    expected_noise = noise**2 * spectrum.sum() / 2
    np.testing.assert_allclose(losses.mean(), value + expected_noise, rtol=0.05)


# The mean loss over the test points at the start, from DeepOBS's own runs.
PUBLISHED_START = 353.44676426478793


def test_quadratic_deep_has_the_numbers_of_deepobs():
    problem = problems.quadratic_deep()
    np.testing.assert_allclose(problem.evaluate(problem.init(KEY)), PUBLISHED_START, rtol=1e-6)
    spectrum = np.linalg.eigvalsh(problem.hessian)
    assert (spectrum[:90] > 0).all()
    assert (spectrum[:90] < 1).all()
    assert (spectrum[90:] > 30).all()
    assert (spectrum[90:] < 60).all()
    random = np.random.RandomState(42)
    drawn = [random.uniform(0, 1, 90), random.uniform(30, 60, 10)]
    np.testing.assert_allclose(spectrum, np.sort(np.concatenate(drawn)), rtol=1e-10)
    assert problem.data.shape == (1000, 100)
    assert problem.test_data.shape == (896, 100)
    assert problem.data.dtype == problem.test_data.dtype == np.float32
    # DeepOBS's first batch for seed 42, and all of that run's training points: its losses at the start.
    order = crowded_valley.tensorflow_order(42, 1000)
    assert sorted(order) == list(range(1000))
    residuals = 1 - problem.data[order].astype(np.float64)
    losses = np.einsum("ni,ij,nj->n", residuals, problem.hessian, residuals) / 2
    np.testing.assert_allclose(losses[:128].mean(), 356.2290344238281, rtol=1e-6)
    np.testing.assert_allclose(losses[:896].mean(), 355.276114327567, rtol=1e-6)


def test_quadratic_deep_draws_its_batches_from_the_data():
    problem = problems.quadratic_deep()
    params = problem.init(KEY) + 1
    residuals = np.asarray(params, np.float64)[None] - problem.data
    losses = np.einsum("ni,ij,nj->n", residuals, problem.hessian, residuals) / 2
    batches = losses_of_many_keys(problem, params, 400)
    np.testing.assert_allclose(batches.mean(), losses.mean(), rtol=2e-3)
    np.testing.assert_allclose(batches.std(), losses.std() / 128**0.5, rtol=0.15)
    lowest = jnp.asarray(problem.test_data.mean(0))
    np.testing.assert_allclose(problem.evaluate(lowest), 86.87, atol=5e-3)
    np.testing.assert_allclose(jax.grad(problem.evaluate)(lowest), 0, atol=1e-3)


PUBLISHED_FINALS = [name for name, each in crowded_valley.PUBLISHED.items() if each.loss]


def test_published_losses_are_reached():
    for name, losses in crowded_valley.reproduce(names=PUBLISHED_FINALS).items():
        published = crowded_valley.PUBLISHED[name]
        np.testing.assert_allclose(losses[:, 0], PUBLISHED_START, rtol=1e-6)
        np.testing.assert_allclose(losses[:, -1].mean(), published.loss, rtol=5e-3)
        _check_single_run(published, losses)


@pytest.mark.slow  # A program each.
def test_single_runs_that_are_published_are_met():
    names = crowded_valley.PUBLISHED.keys() - set(PUBLISHED_FINALS)
    for name, losses in crowded_valley.reproduce(names=names).items():
        _check_single_run(crowded_valley.PUBLISHED[name], losses)


def _check_single_run(published, losses):
    of_seed = losses[crowded_valley.SEEDS.index(published.seed)]
    for epoch, loss in zip(crowded_valley.SHOWN, published.losses, strict=True):
        tolerance = 5e-6 if epoch <= published.until else 2e-3
        np.testing.assert_allclose(of_seed[epoch], loss, rtol=tolerance)

"""Functions of two variables: their formulas and their minima."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from problems.cases import KEY, MAKERS, same

from adaptive_jax import problems

# In NumPy and double precision, written in another way where there is one.
REFERENCES = {
    "rosenbrock": lambda x, y: scipy.optimize.rosen([x, y]),
    "beale": lambda x, y: sum(
        (c - x * (1 - y**n)) ** 2 for n, c in ((1, 1.5), (2, 2.25), (3, 2.625))
    ),
    "himmelblau": lambda x, y: np.sum(np.square([x**2 + y - 11, x + y**2 - 7]), axis=0),
    "booth": lambda x, y: 5 * x**2 + 5 * y**2 + 8 * x * y - 34 * x - 38 * y + 74,
    "branin": lambda x, y: (
        (y - 5.1 / 4 * (x / np.pi) ** 2 + 5 * x / np.pi - 6) ** 2
        + 10 * np.cos(x)
        - 1.25 / np.pi * np.cos(x)
        + 10
    ),
    "rastrigin": lambda x, y: (
        20 + x**2 + y**2 - 10 * (np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y))
    ),
    "ackley": lambda x, y: (
        -20 * np.exp(-0.2 * np.sqrt(0.5 * (x**2 + y**2)))
        - np.exp(0.5 * (np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y)))
        + np.e
        + 20
    ),
    "styblinski-tang": lambda x, y: sum(np.polyval([0.5, 0, -8, 2.5, 0], z) for z in (x, y)),
}
KNOWN = {  # Values at the starts, computed by hand.
    "rosenbrock": 24.2,
    "beale": 14.203125,
    "himmelblau": 170.0,
    "booth": 884.0,
    "rastrigin": 36.25,
    "styblinski-tang": 0.0,
}


def grid(box, points=301):
    x, y = (np.linspace(*side, points) for side in box)
    return np.meshgrid(x, y, indexing="ij")


@pytest.mark.parametrize("name", REFERENCES)
def test_the_function_is_its_formula(name):
    problem = MAKERS[name]()
    x, y = grid(problem.box, 31)
    reference = REFERENCES[name](x, y)
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), jnp.float32)
    values = jax.vmap(problem.evaluate)(points).reshape(x.shape)
    np.testing.assert_allclose(values, reference, rtol=1e-4, atol=1e-4)
    assert same(jax.vmap(problem.loss, in_axes=(0, None))(points, KEY), values.ravel())
    if name in KNOWN:
        start = problem.evaluate(problem.init(KEY))
        np.testing.assert_allclose(start, KNOWN[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_minima_are_minima_and_all_of_them(name):
    problem = MAKERS[name]()
    for minimum in problem.minima:
        here = jnp.array(minimum, jnp.float32)
        np.testing.assert_allclose(problem.evaluate(here), problem.minimum, atol=1e-5)
        np.testing.assert_allclose(REFERENCES[name](*minimum), problem.minimum, atol=1e-8)
        np.testing.assert_allclose(jax.grad(problem.evaluate)(here), 0, atol=2e-3)
        assert all(low <= at <= high for at, (low, high) in zip(minimum, problem.box, strict=True))

    x, y = grid(problem.box)
    values = REFERENCES[name](x, y)
    assert values.min() > problem.minimum - 1e-9
    # From the lowest points of a grid, a method of another kind ends at a minimum that is listed.
    for place in np.argsort(values, axis=None)[:: len(values.ravel()) // 200][:5]:
        start = (x.flat[place], y.flat[place])
        found = scipy.optimize.minimize(lambda p: REFERENCES[name](*p), start, method="Nelder-Mead")
        if found.fun < problem.minimum + 1e-6:
            distances = [math.dist(found.x, minimum) for minimum in problem.minima]
            assert min(distances) < 1e-2


def test_minima_of_one_height_are_all_listed():
    """Every part of the box where the function is nearly lowest is around a listed minimum."""
    for name in REFERENCES:
        problem = MAKERS[name]()
        x, y = grid(problem.box)
        low = REFERENCES[name](x, y) < problem.minimum + 0.02 * (1 + abs(problem.minimum))
        for point in zip(x[low], y[low], strict=True):
            assert min(math.dist(point, minimum) for minimum in problem.minima) < 1.5, name


def test_the_tip_of_ackley_has_a_gradient():
    problem = problems.ackley()
    origin = jnp.zeros(2)
    assert same(jax.grad(problem.evaluate)(origin), np.zeros(2))
    # Close to it the function is a cone, 20·r/5·√½ with r = √2·1e-4 here.
    np.testing.assert_allclose(problem.evaluate(origin + 1e-4), 4e-4, rtol=1e-2)


def test_every_function_has_a_reference():
    assert {make().name for make in problems.TEST_FUNCTIONS} == set(REFERENCES)

"""What finds its own step, or evaluates elsewhere, against the papers' formulas in reference/.

Steps are made of all arrays, of a loss and of where the run started, so one element's step says nothing
alone: an error is that of a whole step, relative to its largest element. What is told from the first
parameters is a difference, θ₀ + … - θ, and right to a rounding of θ besides.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import OF_ALL_ARRAYS, SETTINGS

import adaptive_jax as aj
from tests import reference

STEPS = 40
WITH_VALUES = ("polyak_sgd", "sps", "momo", "momo_adam")
DIFFERENCES = ("cocob", "schedule_free_sgd", "schedule_free_adamw", "mechanize")
CASES = [
    (name, settings) for name in sorted(OF_ALL_ARRAYS) for settings in [{}, *SETTINGS.get(name, [])]
] + [("mechanize", {})]
TOLERANCE = {"float64": 1e-12, "float32": 2e-4}
# Where a parameter of float32 would not hold the first steps, of which the next ones are made.
LARGER = {
    "dog": {"init_step": ("distance", 0.1)},
    "l_dog": {"init_step": ("distance", 0.1)},
    "prodigy": {"estim_lr0": 1e-2, "growth_rate": 1.1},
}


def problem():
    """Gradients that agree on where to go, the parameters before the first step, and losses."""
    rng = np.random.default_rng(2023)
    gradients = rng.normal(1.0, 0.7, (STEPS, 7)) * 10 ** rng.uniform(-2, 1, 7)
    gradients[rng.random(gradients.shape) < 0.1] = 0
    values = 3 * 0.9 ** np.arange(STEPS) + 0.1 * rng.random(STEPS)
    to_float32 = lambda x: np.float64(np.float32(x))  # noqa: E731
    return to_float32(gradients), to_float32(rng.normal(size=7)), to_float32(values)


def cut(x, name):
    """The numbers in two arrays; in one for what has a step size for each array."""
    return (
        {"w": x}
        if name == "l_dog"
        else {"w": x[..., :6].reshape(*x.shape[:-1], 2, 3), "b": x[..., 6]}
    )


def joined(tree):
    """The reverse."""
    return np.concatenate(
        [np.reshape(tree[name], (STEPS, -1)) for name in ("w", "b") if name in tree], 1
    )


@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
)
def test_follows_the_paper(name, settings):
    check(name, settings, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OF_ALL_ARRAYS))
def test_follows_the_paper_in_float32(name):
    check(name, LARGER.get(name, {}), "float32")


def check(name, settings, dtype):
    gradients, first, values = problem()
    given = (values,) if name in WITH_VALUES else ()
    settings = {"learning_rate": 0.1} if name == "mechanize" else settings
    expected = getattr(reference, name)(gradients, first, *given, **settings)
    params = np.cumsum(np.concatenate([first[None], expected[:-1]]), 0)
    with jax.enable_x64(dtype == "float64"):
        tx = aj.mechanize(aj.sgd(0.1)) if name == "mechanize" else getattr(aj, name)(**settings)

        @jax.jit
        def run(gradients, params, values):
            def step(state, given):
                updates, state = tx.update(given[0], state, given[1], value=given[2])
                return state, updates

            start = jax.tree.map(lambda x: x[0], params)
            return jax.lax.scan(step, tx.init(start), (gradients, params, values))[1]

        trees = (cut(jnp.asarray(x, dtype), name) for x in (gradients, params))
        found = joined(run(*trees, jnp.asarray(values, dtype)))
    size = TOLERANCE[dtype] * np.abs(expected).max(1, keepdims=True)
    if name in DIFFERENCES:
        size = size + 4 * np.finfo(dtype).eps * np.abs(params).max()
    assert np.isfinite(found).all()
    step, place = np.unravel_index(np.argmax(np.abs(found - expected) - size), found.shape)
    assert np.abs(found - expected)[step, place] <= size[step], (step, place, found[step, place])


def test_no_two_settings_give_the_same():
    gradients, first, values = problem()
    for name in OF_ALL_ARRAYS:
        given = (values,) if name in WITH_VALUES else ()
        runs = [
            getattr(reference, name)(gradients, first, *given, **s) for n, s in CASES if n == name
        ]
        for i, one in enumerate(runs):
            assert not any(np.allclose(one, other, rtol=1e-3) for other in runs[:i]), name


def test_dowg_comes_further_than_what_can_be_squared():
    tx, far = aj.dowg(), jnp.array([1e25, -1e30])
    state = tx.init(jnp.zeros(2))
    for _ in range(3):
        updates, state = tx.update(jnp.array([1e-3, 1e20]), state, far)
        assert jnp.isfinite(updates).all()
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))
    assert (jnp.abs(updates) > 0).all()

"""Derivatives through training: by the first parameters, the gradients and every hyperparameter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import (
    CASES,
    CATALOGUE,
    FIRST,
    ILL_CONDITIONED,
    how_often,
    label,
    required,
    rules_of,
    sees_matrices,
)

STEPS = 8  # RAdam turns into Adam in the sixth.

# Nothing is differentiated through what is refreshed every so many steps.
REFRESHED = ("PsgdKron", "Shampoo", "Soap")
# A piece for a chain is the rule of the whole optimizer.
DIFFERENTIABLE = [
    case
    for case, (factory, settings) in CASES.items()
    if not any(type(rule).__name__ in REFRESHED for rule in rules_of(factory(**settings)))
    and not (
        case.startswith("scale_by_") and factory.__name__.removeprefix("scale_by_") in CATALOGUE
    )
]
# A sign, and the walls of a box, but for where they begin.
FLAT = (*ILL_CONDITIONED, "Rprop", "Box", "Sign", "Sophia")

# The default run takes each kind of arithmetic once. (The ports are made of the same rules.)
DEFAULT = [
    label(name, required(name))
    for name in ("sgd", "adagrad", "rmsprop", "adam", "amsgrad", "radam", "clip_by_global_norm")
]

each = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=how_often(case, DEFAULT)) for case in DIFFERENTIABLE],
)


def training(
    case: str, dtype: type, slope: tuple[float, float, float]
) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """The loss that some steps lead to, and the hyperparameters it is a function of.

    It also takes the parameters to start from and what to add to the gradient, slope · θ, of every
    step.
    """
    factory, settings = CASES[case]
    leaves, treedef = jax.tree.flatten(factory(**settings))
    steepness = jnp.broadcast_to(jnp.array(slope, dtype), shape_of_params(case))

    def loss(hyperparameters, start, noise):
        tx = treedef.unflatten(hyperparameters)

        def step(carry, noise):
            params, state = carry
            updates, state = tx.update(steepness * params + noise, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), noise)
        return jnp.sum(jnp.square(params) + jnp.sin(params))

    return loss, [jnp.asarray(leaf, dtype) for leaf in leaves]


def shape_of_params(case: str) -> tuple[int, ...]:
    factory, settings = CASES[case]
    return (2, 3) if sees_matrices(factory(**settings)) else (3,)


@each
def test_derivatives_are_finite_differences(case):
    """In float64, forward and backward. Along each hyperparameter, and one way for the arrays."""
    with jax.enable_x64(True):
        loss, hyperparameters = training(case, np.float64, (0.3, 1.0, 3.0))
        # Where a difference can be taken: within the limits, not of a term that is hardly there, and not
        # where a warm-up of so many steps ends in one of them.
        base = [jnp.maximum(value, 1e-3) for value in hyperparameters]
        base = [jnp.where((value == 1) | (value == 4), value + 1e-3, value) for value in base]
        rng = np.random.default_rng(0)
        shape = shape_of_params(case)
        start, towards = rng.normal(size=(2, *shape))
        noise, change = rng.normal(size=(2, STEPS, *shape))

        def moved(distance):
            return loss(
                [value + each for value, each in zip(base, distance, strict=False)],
                start + distance[-2] * towards,
                noise + distance[-1] * change,
            )

        h = 1e-6
        ways = np.eye(len(base) + 2)
        values = jax.jit(jax.vmap(moved))(np.concatenate([h * ways, -h * ways]))
        differences = (values[: len(ways)] - values[len(ways) :]) / (2 * h)
        nowhere = np.zeros(len(ways))
        backward = jax.jit(jax.grad(moved))(nowhere)
        if case in DEFAULT:
            forward = jax.jit(jax.jacfwd(moved))(nowhere)
            np.testing.assert_allclose(forward, backward, rtol=1e-9, atol=1e-12)
        else:  # Without compiling it: what is backward is its transpose.
            jax.eval_shape(jax.jacfwd(moved), nowhere)
        rounding = 1e-9 * np.abs(values).max()
        np.testing.assert_allclose(backward, differences, rtol=1e-5, atol=1e-7 + rounding)
        of_start, of_noise = np.abs(differences[-2:])
        factory, settings = CASES[case]
        is_flat = any(type(rule).__name__ in FLAT for rule in rules_of(factory(**settings)))
        assert of_start > 1e-4 or (is_flat and of_start == 0)
        assert of_noise > 1e-4 or (is_flat and of_noise == 0)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, np.float32) for case in DEFAULT),
        *(pytest.param(case, np.float64, marks=pytest.mark.slow) for case in DEFAULT),
        # With ε = 0, zero is where a quotient has no derivative.
        *(
            pytest.param(case, np.float32, marks=pytest.mark.slow)
            for case, (_, settings) in CASES.items()
            if case not in DEFAULT and (case in FIRST or settings.get("eps") == 0)
        ),
    ],
)
def test_derivatives_are_finite_at_zero_gradients(case, dtype):
    """As ε = 0 has it, and every other hyperparameter as it is. √x has no derivative at 0."""
    with jax.enable_x64(dtype == np.float64):
        # A slope that depends on the parameters would multiply eight derivatives of 1/ε, which may
        # well be larger than what float32 can hold.
        loss, hyperparameters = training(case, dtype, (0.0, 0.0, 0.0))
        slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        zeros = [np.zeros((*steps, *shape_of_params(case)), dtype) for steps in ((), (STEPS,))]
        halfway = np.zeros_like(zeros[1])
        halfway[STEPS // 2] = 1.0
        for start, noise in (zeros, (zeros[0], halfway)):
            for slope in jax.tree.leaves(slopes(hyperparameters, start, noise)):
                assert np.isfinite(slope).all()
        ways = jax.tree.map(np.ones_like, (hyperparameters, *zeros))
        assert np.isfinite(jax.jvp(loss, (hyperparameters, *zeros), ways)[1])

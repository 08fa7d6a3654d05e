"""The policy gradient: right on average, and judged exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems.cases import KEY

from adaptive_jax import problems


@pytest.fixture(scope="module")
def problem():
    return problems.policy_gradient(side=3, hidden=4)


def test_value_and_gradient_are_right_on_average(problem):
    params = jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, jax.jit(problem.init)(KEY))
    keys = jax.random.split(KEY, 10_000)

    @jax.jit
    def sampled(keys):
        losses, gradients = jax.vmap(jax.value_and_grad(problem.loss), in_axes=(None, 0))(
            params, keys
        )
        return jax.tree.map(lambda x: (x.mean(0), x.std(0) / len(keys) ** 0.5), (losses, gradients))

    exact, slope = jax.jit(jax.value_and_grad(problem.evaluate))(params)
    (loss, error), gradients = sampled(keys)
    assert error < 0.005
    np.testing.assert_allclose(loss, exact - problem.best_return, atol=5 * error)
    found = jax.tree.leaves(gradients, is_leaf=lambda x: isinstance(x, tuple))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) > 0.1
    for (mean, deviation), expected in zip(found, jax.tree.leaves(slope), strict=True):
        assert (np.abs(mean - expected) <= 5 * deviation + 1e-6).all()


def test_the_exact_return_is_that_of_a_walk_in_numpy(problem):
    params = jax.jit(problem.init)(KEY)
    policy = np.asarray(problem.policy(params), np.float64)
    np.testing.assert_allclose(policy.sum(axis=1), 1, rtol=1e-6)
    # Forward, by where the walk is after each step.
    place, total = np.eye(9)[0], 0.0
    for _ in range(12):
        taken = place[:, None] * policy
        total += np.sum(taken * problem.rewards)
        place = np.einsum("sa,san->n", taken, problem.transitions)
    np.testing.assert_allclose(problem.evaluate(params), problem.best_return - total, rtol=1e-5)


def test_the_best_return_is_known_where_nothing_slips():
    for side in (2, 4):
        problem = problems.policy_gradient(side=side, slip=0.0)
        # The shortest way has 2 (side - 1) steps.
        np.testing.assert_allclose(problem.best_return, 1 - 2 * (side - 1) / (4 * side), rtol=1e-12)


def test_no_policy_is_better_than_the_best_and_a_good_one_is_near():
    problem = problems.policy_gradient()
    params = jax.vmap(problem.init)(jax.random.split(KEY, 50))
    values = jax.jit(jax.vmap(problem.evaluate))(jax.tree.map(lambda leaf: 5 * leaf, params))
    assert (values >= 0).all()
    assert values.std() > 0.05
    # Of policies that do not know how much time is left, the best loses next to nothing.
    value = np.zeros(25)
    for _ in range(2000):
        each = problem.rewards + problem.transitions @ value
        value = each.max(axis=1)
    policy, value = np.eye(4)[each.argmax(axis=1)], np.zeros(25)
    for _ in range(20):
        value = np.sum(policy * (problem.rewards + problem.transitions @ value), axis=1)
    assert 0 <= problem.best_return - value[0] < 1e-4


def test_walks_that_come_to_the_same_have_no_gradient():
    """Exactly none: Adam would make steps of its rounding."""
    problem = problems.policy_gradient(side=10)
    gradient = jax.jit(jax.grad(problem.loss))(problem.init(KEY), KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_grid():
    problem = problems.policy_gradient(side=3, slip=0.2)
    transitions = problem.transitions
    np.testing.assert_allclose(transitions.sum(axis=2), 1)
    up, right, down, left = range(4)
    # From the middle upwards: 0.8 up, 0.1 to either side; from a corner the walls hold.
    np.testing.assert_allclose(transitions[4, up], np.eye(9)[[1, 3, 5]].T @ [0.8, 0.1, 0.1])
    np.testing.assert_allclose(transitions[0, left], np.eye(9)[[0, 0, 3]].T @ [0.8, 0.1, 0.1])
    # The goal is reached from above and from the left, and holds for nothing.
    np.testing.assert_allclose(problem.rewards[5, down], 0.8 - 1 / 12)
    np.testing.assert_allclose(problem.rewards[7, right], 0.8 - 1 / 12)
    assert (transitions[8, :, 8] == 1).all()
    assert (problem.rewards[8] == 0).all()


def test_a_policy_that_always_does_the_same_has_no_gradient(problem):
    params = jax.jit(problem.init)(KEY)
    stuck = [params[0], params[1] | {"b": jnp.array([200.0, 0.0, 0.0, 0.0])}]
    gradient = jax.jit(jax.grad(problem.loss))(stuck, KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    assert problem.evaluate(stuck) > 0.9

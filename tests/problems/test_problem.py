"""What every problem promises, targets within reach among it, and what is refused."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems.cases import KEY, MAKERS, leaves, same

import adaptive_jax as aj
from adaptive_jax import problems

NOISY = {
    "noisy quadratic", "quadratic_deep", "noisy matrix regression", "logistic regression", "digits",
    "convolutional network", "residual network", "autoencoder", "policy gradient", "language model",
}  # fmt: skip
RANDOM_START = {
    "quadratic", "diagonal", "noisy quadratic", "matrix regression", "noisy matrix regression",
    "digits", "convolutional network", "residual network", "autoencoder", "policy gradient",
    "language model",
}  # fmt: skip


class Case(NamedTuple):
    """A problem, and what came of three runs of it that start at two points and draw with two keys.

    start: the first parameters. values: of evaluate there, and after three steps from elsewhere.
    seen: the losses and the gradients of these steps.
    """

    name: str
    problem: problems.Problem
    start: Any
    values: Any
    seen: Any


# Compiled for many seconds: the tests of the language model by itself are quicker.
SLOW = {"language model": pytest.mark.slow}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=SLOW.get(name, ())) for name in MAKERS]
)
def case(request):
    """Made once for all tests of it, in one program: compiling is what takes time."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        problem = MAKERS[request.param]()
        tx = aj.adam(1e-3)

        def step(run, key):
            params, state = run
            loss, gradient = jax.value_and_grad(problem.loss)(params, key)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), (loss, gradient)

        @jax.jit
        @jax.vmap
        def measure(start, key):
            params = problem.init(start)
            # At 0, logistic regression has the same loss for every patient.
            elsewhere = jax.tree.map(lambda leaf: leaf + 0.1, params)
            run = elsewhere, tx.init(elsewhere)
            (trained, _), seen = jax.lax.scan(step, run, jax.random.split(key, 3))
            both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, trained)
            return params, jax.lax.map(problem.evaluate, both), seen

        first, second = jax.random.split(KEY)
        starts, keys = jnp.stack([first, first, second]), jnp.stack([first, second, first])
        return Case(request.param, problem, *measure(starts, keys))


def test_it_trains_under_jit_vmap_scan_and_grad(case):
    losses, gradients = case.seen
    assert losses.shape == (3, 3)
    assert case.values.shape == (3, 2)
    assert all(leaf.dtype == np.float32 for leaf in leaves((case.start, case.values, case.seen)))
    assert all(np.isfinite(leaf).all() for leaf in leaves((case.values, case.seen)))
    assert any((leaf != 0).any() for leaf in leaves(gradients))
    assert case.problem.target is None or (case.values[:, 0] > case.problem.target).all()


def test_keys_are_for_noise_and_the_start_alone(case):
    one_start, other_key, other_start = (
        jax.tree.map(lambda leaf, run=run: leaf[run], (case.start, case.values[:, 0]))
        for run in range(3)
    )
    assert same(one_start, other_key)
    assert same(one_start, other_start) == (case.name not in RANDOM_START)
    losses, _ = case.seen
    assert (losses[0] != losses[1]).any() == (case.name in NOISY)


def test_it_is_hashable_and_shown_without_its_numbers(case):
    problem = case.problem
    assert {problem: 1}[problem] == 1
    assert repr(problem).startswith(f"{type(problem).__name__}(name={problem.name!r}, steps=")
    assert len(repr(problem)) < 400


GOOD_SETTINGS = {
    "rosenbrock": aj.adam(0.3),
    "beale": aj.adam(0.1),
    "himmelblau": aj.adam(0.3),
    "booth": aj.sgd(3e-3, momentum=0.9),
    "branin": aj.adam(0.3),
    "ackley": aj.sgd(0.01, momentum=0.9),
    "styblinski-tang": aj.sgd(1e-3, momentum=0.9),
    "quadratic": aj.adam(0.1),
    "noisy quadratic": aj.adam(0.03),
    "quadratic_deep": aj.sgd(0.01),
    "matrix regression": aj.adam(0.1),
    "logistic regression": aj.adam(0.03),
    "digits": aj.adam(0.01),
    "autoencoder": aj.adam(0.01),
}
FULL_SIZE = {
    "policy gradient": (problems.policy_gradient, aj.adam(0.01)),
    "convolutional network": (problems.convolutional_network, aj.adam(0.01)),
    "residual network": (problems.residual_network, aj.adam(0.01)),
    "language model": (problems.language_model, aj.adam(3e-3)),
}


def first_step_at_target(problem, tx, every=1):
    """Counted to a multiple of every: to evaluate takes longer than to train."""

    def step(run, key):
        params, state = run
        updates, state = tx.update(jax.grad(problem.loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(run, keys):
        run, _ = jax.lax.scan(step, run, keys)
        return run, problem.evaluate(run[0])

    @jax.jit
    def train(key):
        params = problem.init(key)
        keys = jax.random.split(jax.random.fold_in(key, 1), problem.steps)
        return jax.lax.scan(stretch, (params, tx.init(params)), keys.reshape(-1, every))[1]

    reached = np.asarray(train(KEY)) <= problem.target
    assert reached.any()
    return every * (int(np.argmax(reached)) + 1)


@pytest.mark.parametrize("name", GOOD_SETTINGS)
def test_a_good_setting_reaches_the_target_about_halfway(name):
    problem = MAKERS[name]()
    step = first_step_at_target(problem, GOOD_SETTINGS[name])
    assert 0.3 * problem.steps < step < 0.8 * problem.steps


@pytest.mark.seldom
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_good_setting_reaches_the_target_of_what_takes_longer(name):
    make, tx = FULL_SIZE[name]
    problem = make()
    step = first_step_at_target(problem, tx, every=10)
    assert 0.3 * problem.steps < step < 0.8 * problem.steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.quadratic(dimension=0), r"dimension=0 must be a whole number, 1 or more"),
        (lambda: problems.quadratic(dimension=2.0), r"dimension=2.0 must be a whole number"),
        (lambda: problems.quadratic(condition=0.5), r"condition=0.5 must be finite, and 1 or more"),
        (lambda: problems.quadratic(noise=math.nan), r"noise=nan must be finite"),
        (lambda: problems.quadratic(noise="0"), r"noise='0' must be a number"),
        (lambda: problems.matrix_regression(rows=0), r"rows=0 must be a whole number, 1 or more"),
        (
            lambda: problems.matrix_regression(condition_columns=0.1),
            r"condition_columns=0.1 must be",
        ),
        (lambda: problems.logistic_regression(l2=-1), r"l2=-1 must be finite, and 0 or more"),
        (lambda: problems.digits(hidden=0), r"hidden=0 must be a whole number"),
        (
            lambda: problems.convolutional_network(0),
            r"channels=0 must be a whole number, 1 or more",
        ),
        (lambda: problems.residual_network(1), r"channels=1 must be a whole number, 2 or more"),
        (lambda: problems.residual_network(blocks=0), r"blocks=0 must be a whole number"),
        (lambda: problems.autoencoder(()), r"widths=\(\) must be a tuple of at least one width"),
        (lambda: problems.autoencoder(8), r"widths=8 must be a tuple of at least one width"),
        (lambda: problems.autoencoder((8, 0)), r"widths=0 must be a whole number, 1 or more"),
        (lambda: problems.policy_gradient(side=1), r"side=1 must be a whole number, 2 or more"),
        (lambda: problems.policy_gradient(episodes=1), r"2 or more\. Each is judged by the others"),
        (
            lambda: problems.policy_gradient(slip=1.5),
            r"slip=1.5 must be a probability, from 0 to 1",
        ),
        (lambda: problems.language_model(layers=True), r"layers=True must be a whole number"),
        (lambda: problems.language_model(width=48), r"width=48 must be a multiple of 32"),
        (lambda: problems.language_model(length=10**6), r"length=1000000 must be less than"),
        (lambda: make_problem(steps=0), r"steps=0 must be a whole number, 1 or more"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def make_problem(**changes):
    def zero(params=None, key=None):
        return jnp.zeros(())

    arguments = {"name": "own", "init": zero, "loss": zero, "evaluate": zero, "steps": 1}
    return problems.Problem(**arguments | changes)


def test_what_is_no_function_is_refused():
    assert make_problem().target is None
    with pytest.raises(TypeError, match=r"loss=3 of the problem 'own' is a int: it must be"):
        make_problem(loss=3)


def test_what_is_reported_is_test_where_there_is_one():
    problem = make_problem()
    assert problem.reported is problem.evaluate
    with_test = make_problem(test=jnp.sum)
    assert with_test.reported is with_test.test is jnp.sum
    with pytest.raises(TypeError, match=r"test='digits' of the problem 'own' is a str: it must be"):
        make_problem(test="digits")


def test_every_problem_is_tested_here():
    public = {
        value
        for name, value in vars(problems).items()
        if inspect.isfunction(value) and name[0] != "_"
    }
    made = [make() for make in public]
    assert {problem.name for problem in made} <= set(MAKERS)
    functions = {problem.name for problem in made if isinstance(problem, problems.TestFunction)}
    assert functions == {make().name for make in problems.TEST_FUNCTIONS}

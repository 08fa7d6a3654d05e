"""The problems: their formulas, their minima, published numbers, and targets within reach."""

from __future__ import annotations

import inspect
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special
import sklearn.datasets
import sklearn.metrics
import sklearn.preprocessing
from benchmarks import crowded_valley

import adaptive_jax as aj
from adaptive_jax import problems
from adaptive_jax.problems import language

KEY = jax.random.key(0)
SMALL_TEXT = {"layers": 1, "width": 32, "length": 12, "batch": 4}
MAKERS = {
    **{make().name: make for make in problems.TEST_FUNCTIONS},
    "quadratic": problems.quadratic,
    "diagonal": lambda: problems.quadratic(dimension=7, rotation=False),
    "noisy quadratic": lambda: problems.quadratic(noise=0.1),
    "quadratic_deep": problems.quadratic_deep,
    "logistic regression": problems.logistic_regression,
    "digits": problems.digits,
    "language model": lambda: problems.language_model(**SMALL_TEXT),
}
NOISY = {"noisy quadratic", "quadratic_deep", "logistic regression", "digits", "language model"}
RANDOM_START = {"quadratic", "diagonal", "noisy quadratic", "digits", "language model"}


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


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def losses_of_many_keys(problem, params, count):
    return jax.jit(jax.vmap(problem.loss, in_axes=(None, 0)))(params, jax.random.split(KEY, count))


def same(tree, other):
    return all(map(np.array_equal, leaves(tree), leaves(other)))


# --- What every problem promises -------------------------------------------------------------------


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


# --- Whose targets are within reach ----------------------------------------------------------------

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
    "logistic regression": aj.adam(0.03),
    "digits": aj.adam(0.01),
}


def first_step_at_target(problem, tx):
    def step(run, key):
        params, state = run
        updates, state = tx.update(jax.grad(problem.loss)(params, key), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), problem.evaluate(params)

    @jax.jit
    def train(key):
        params = problem.init(key)
        keys = jax.random.split(jax.random.fold_in(key, 1), problem.steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

    reached = np.asarray(train(KEY)) <= problem.target
    assert reached.any()
    return int(np.argmax(reached)) + 1


@pytest.mark.parametrize("name", GOOD_SETTINGS)
def test_a_good_setting_reaches_the_target_about_halfway(name):
    problem = MAKERS[name]()
    step = first_step_at_target(problem, GOOD_SETTINGS[name])
    assert 0.3 * problem.steps < step < 0.8 * problem.steps


@pytest.mark.slow
def test_a_good_setting_reaches_the_target_of_the_language_model():
    problem = problems.language_model()
    step = first_step_at_target(problem, aj.adam(3e-3))
    assert 0.4 * problem.steps < step < 0.8 * problem.steps


# --- Functions of two variables --------------------------------------------------------------------

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


# --- Quadratics ------------------------------------------------------------------------------------


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


def test_published_losses_are_reached():
    for name, losses in crowded_valley.reproduce().items():
        published = crowded_valley.PUBLISHED[name]
        np.testing.assert_allclose(losses[:, 0], PUBLISHED_START, rtol=1e-6)
        np.testing.assert_allclose(losses[:, -1].mean(), published.loss, rtol=5e-3)
        single = losses[crowded_valley.SEEDS.index(published.seed), list(crowded_valley.SHOWN)]
        np.testing.assert_allclose(single, published.losses, rtol=5e-6)


# --- Models of real data ---------------------------------------------------------------------------


def test_logistic_regression_against_scikit_learn():
    problem = problems.logistic_regression(l2=0.1)
    without = problems.logistic_regression(l2=0.0)
    data = sklearn.datasets.load_breast_cancer()
    order = np.random.RandomState(0).permutation(len(data.data))
    training, held_out = order[: 569 * 3 // 4], order[569 * 3 // 4 :]
    scaler = sklearn.preprocessing.StandardScaler().fit(data.data[training])
    params = {"w": jnp.linspace(-1.0, 1.0, 30), "b": jnp.array(0.5)}

    def log_loss(rows):
        logits = scaler.transform(data.data[rows]) @ np.asarray(params["w"]) + 0.5
        probabilities = 1 / (1 + np.exp(-logits))
        return sklearn.metrics.log_loss(data.target[rows], probabilities)

    assert len(held_out) == 143
    for each in (problem, without):
        np.testing.assert_allclose(each.evaluate(params), log_loss(held_out), rtol=1e-4)
    batches = losses_of_many_keys(without, params, 3000)
    np.testing.assert_allclose(batches.mean(), log_loss(training), rtol=0.02)
    penalty = 0.05 * np.sum(np.square(params["w"]))
    difference = problem.loss(params, KEY) - without.loss(params, KEY)
    np.testing.assert_allclose(difference, penalty, rtol=1e-5)


def test_digits_against_numpy():
    problem = problems.digits(hidden=5)
    params = jax.jit(problem.init)(KEY)
    assert [layer["w"].shape for layer in params] == [(64, 5), (5, 10)]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    first, second = jax.tree.map(np.asarray, params)
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    training, held_out = order[: 1797 * 3 // 4], order[1797 * 3 // 4 :]

    def cross_entropy(rows):
        activations = np.maximum(pixels[rows] / 16 @ first["w"] + first["b"], 0)
        logits = activations @ second["w"] + second["b"]
        return -np.mean(
            scipy.special.log_softmax(logits, axis=1)[np.arange(len(rows)), labels[rows]]
        )

    assert len(held_out) == 450
    value = jax.jit(problem.evaluate)(params)
    np.testing.assert_allclose(value, cross_entropy(held_out), rtol=1e-4)
    batches = losses_of_many_keys(problem, params, 1000)
    np.testing.assert_allclose(batches.mean(), cross_entropy(training), rtol=0.01)


def test_the_language_model_starts_out_knowing_nothing():
    problem = problems.language_model(**SMALL_TEXT)
    params = jax.jit(problem.init)(KEY)
    vocabulary = len(params["tokens"])
    blank = params | {"output": jnp.zeros_like(params["output"])}

    @jax.jit
    def measure(params):
        loss, gradient = jax.value_and_grad(problem.loss)(params, KEY)
        return (problem.evaluate(params), loss), gradient

    losses, gradient = measure(blank)
    np.testing.assert_allclose(losses, math.log(vocabulary), rtol=1e-5)
    # Only what the blank output multiplies has an influence.
    assert {name for name in gradient if any(leaf.any() for leaf in leaves(gradient[name]))} == {
        "output"
    }
    losses, gradient = measure(params)
    np.testing.assert_allclose(losses, math.log(vocabulary), atol=1)
    assert all(leaf.any() and np.isfinite(leaf).all() for leaf in leaves(gradient))


def test_the_language_model_looks_back_only():
    params = jax.jit(problems.language_model(**SMALL_TEXT).init)(KEY)
    tokens = jnp.arange(12)
    network = jax.jit(language._transformer)
    logits, others = network(params, tokens), network(params, tokens.at[7].set(50))
    difference = np.abs(logits - others).max(axis=1)
    assert (difference[:7] == 0).all()
    assert (difference[7:] > 1e-4).all()


def test_the_text_held_out_is_unseen():
    vocabulary, training, held_out = language._text()
    assert training.max() < vocabulary > held_out.max()
    assert len(held_out) > 10_000
    seen = training.tobytes()
    starts = np.random.RandomState(1).randint(len(held_out) - 64, size=100)
    repeated = sum(held_out[start : start + 64].tobytes() in seen for start in starts)
    assert repeated <= 10


# --- What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.quadratic(dimension=0), r"dimension=0 must be a whole number, 1 or more"),
        (lambda: problems.quadratic(dimension=2.0), r"dimension=2.0 must be a whole number"),
        (lambda: problems.quadratic(condition=0.5), r"condition=0.5 must be finite, and 1 or more"),
        (lambda: problems.quadratic(noise=math.nan), r"noise=nan must be finite"),
        (lambda: problems.quadratic(noise="0"), r"noise='0' must be a number"),
        (lambda: problems.logistic_regression(l2=-1), r"l2=-1 must be finite, and 0 or more"),
        (lambda: problems.digits(hidden=0), r"hidden=0 must be a whole number"),
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


@pytest.mark.parametrize("make", [problems.logistic_regression, problems.digits])
def test_without_scikit_learn_the_error_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive_jax\[examples\]"'):
        make()


def test_every_problem_is_tested_here():
    public = {
        value
        for name, value in vars(problems).items()
        if inspect.isfunction(value) and name[0] != "_"
    }
    made = [make() for make in public]
    assert {problem.name for problem in made} <= set(MAKERS)
    assert {make().name for make in problems.TEST_FUNCTIONS} == set(REFERENCES)
    functions = {problem.name for problem in made if isinstance(problem, problems.TestFunction)}
    assert functions == set(REFERENCES)

"""Penalties, proximal steps, constraints and FTRL: known supports, scikit-learn's optima, exact zeros."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from tests import reference

SAMPLES, FEATURES = 200, 20
SUPPORT = np.array([2, 3, 11, 17])
L1, L2 = 0.1, 0.05


@pytest.fixture(scope="module")
def regression():
    """A linear model of four of twenty features, which are orthogonal, with little noise."""
    rng = np.random.default_rng(0)
    truth = np.zeros(FEATURES)
    truth[SUPPORT] = [1.5, -2.0, 1.0, 0.7]
    x = np.linalg.qr(rng.normal(size=(SAMPLES, FEATURES)))[0] * SAMPLES**0.5
    return x, x @ truth + 0.1 * rng.normal(size=SAMPLES)


def minimised(tx, regression, steps=3000, params=None, dtype="float64", batch=SAMPLES):
    """The weights after so many steps down the mean squared error, halved as in scikit-learn."""
    rows = np.stack([np.random.default_rng(i).permutation(SAMPLES)[:batch] for i in range(steps)])
    x, y = (jnp.asarray(each, dtype) for each in regression)
    params = jnp.full(FEATURES, 0.5, dtype) if params is None else params

    def loss(w, rows):
        return 0.5 * jnp.mean((x[rows] @ w.astype(dtype) - y[rows]) ** 2)

    @jax.jit
    def run(params):
        def step(carry, rows):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
            return (aj.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.asarray(rows))[0][0]

    return np.asarray(run(params).astype(dtype))


@pytest.mark.parametrize("l2", [None, L2])
@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9, "dampening": 0.9}])
def test_the_optimum_is_that_of_scikit_learn(regression, l2, momentum):
    """Lasso and ElasticNet, to 1e-5, zeros included; the penalty alone leaves none."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    total = L1 + (l2 or 0)
    options = {"alpha": total, "fit_intercept": False, "tol": 1e-12, "max_iter": 100_000}
    theirs = linear_model.ElasticNet(l1_ratio=L1 / total, **options).fit(*regression).coef_
    if l2 is None:
        lasso = linear_model.Lasso(**options).fit(*regression).coef_
        np.testing.assert_allclose(theirs, lasso, atol=1e-9)
    with jax.enable_x64(True):
        ours = minimised(aj.chain(aj.sgd(0.1, **momentum), aj.proximal(L1, l2)), regression)
        penalised = minimised(aj.chain(aj.add_penalty(L1, l2), aj.sgd(0.01)), regression)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    x, y = regression
    correlation = x.T @ y / SAMPLES  # For orthogonal features there is a closed form.
    closed = np.sign(correlation) * np.maximum(np.abs(correlation) - L1, 0) / (1 + (l2 or 0))
    np.testing.assert_allclose(ours, closed, atol=1e-9)
    assert set(np.flatnonzero(ours)) == set(np.flatnonzero(theirs)) == set(SUPPORT)
    assert np.count_nonzero(penalised) == FEATURES
    np.testing.assert_allclose(penalised, theirs, atol=0.01)


FALLING = aj.schedules.linear_schedule(0.02, 0.0, 3000)
OPTIMIZERS = {
    "adam": (aj.adam(FALLING), 0.4),
    "amsgrad": (aj.amsgrad(FALLING), 0.1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adaptive_optimizers_find_the_support(regression, name, dtype):
    """Of noisy gradients, whose mean is small in the units of their size where a feature does nothing."""
    start = jnp.full(FEATURES, 0.5, dtype)
    tx, strength = OPTIMIZERS[name]
    found, plain = (
        minimised(each, regression, params=start, dtype="float32", batch=8)
        for each in (aj.chain(tx, aj.proximal(strength)), tx)
    )
    assert set(np.flatnonzero(found)) >= set(SUPPORT)
    # In bfloat16 the support is a little off, and so the gradients of the others are no noise alone.
    assert np.count_nonzero(found) <= (len(SUPPORT) if dtype == "float32" else FEATURES // 2)
    assert np.count_nonzero(plain) == FEATURES


def test_ftrl_finds_the_support(regression):
    """Of gradients of single samples, as it is meant."""
    x, y = regression
    tx = aj.ftrl(1.0, l1=150.0)
    params = jnp.zeros(FEATURES)

    @jax.jit
    def run(params):
        def step(carry, sample):
            params, state = carry
            x, y = sample
            gradient = jax.grad(lambda w: 0.5 * (jnp.sum(x * w) - y) ** 2)(params)
            updates, state = tx.update(gradient, state, params)
            return (params + updates, state), None

        samples = (
            jnp.asarray(np.tile(x, (5, 1)), jnp.float32),
            jnp.asarray(np.tile(y, 5), jnp.float32),
        )
        return jax.lax.scan(step, (params, tx.init(params)), samples)[0][0]

    assert set(np.flatnonzero(run(params))) == set(SUPPORT)


def one_step(tx, params, gradients):
    """The parameters after a step."""
    updates, _ = tx.update(gradients, tx.init(params), params)
    return aj.apply_updates(params, updates)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gradient_dtype", ["same", "float32"])
def test_zeros_are_exact_where_an_update_can_hold_the_parameter(dtype, gradient_dtype):
    params = jnp.linspace(-3.0, 3.0, 1001).astype(dtype)
    gradients = jnp.zeros(1001, dtype if gradient_dtype == "same" else gradient_dtype)
    tx = aj.chain(aj.sgd(0.1), aj.proximal(10.0))
    new = one_step(tx, params, gradients)
    np.testing.assert_array_equal(new == 0, jnp.abs(params.astype(jnp.float32)) <= 1.0)


def test_zeros_are_lost_in_updates_that_are_narrower_than_parameters():
    """As said: -θ of a float32 parameter is no number of float16."""
    params = jnp.linspace(0.1, 0.9, 100)
    tx = aj.chain(aj.sgd(0.1), aj.proximal(10.0))
    assert not (one_step(tx, params, jnp.zeros(100, jnp.float16)) == 0).any()


def test_zeros_stay_where_updates_are_rounded_at_random_or_compensated():
    params, zeros = jnp.linspace(0.1, 0.9, 100).astype(jnp.bfloat16), jnp.zeros(100)
    tx = aj.chain(aj.adam(0.1), aj.proximal(10.0))
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert (aj.apply_updates(params, updates, rounding="stochastic", step=3) == 0).all()
    exact = aj.compensate(tx)
    updates, _ = exact.update(zeros, exact.init(params), params)
    assert (aj.apply_updates(params, updates) == 0).all()


MATRIX = jnp.array([[3.0, 0.03, 1.0], [4.0, 0.04, -1.0]])


@pytest.mark.parametrize(
    ("groups", "norms"),
    [
        ("columns", np.array([[5.0, 0.05, 2**0.5]])),
        ("rows", np.linalg.norm(np.asarray(MATRIX), axis=1, keepdims=True)),
        ("array", np.linalg.norm(np.asarray(MATRIX)).reshape(1, 1)),
    ],
)
def test_groups(groups, norms):
    """A group within ηλ of 0 becomes 0 as a whole, and the others are shorter by it."""
    strength = {"columns": 2.0, "rows": 40.0, "array": 60.0}[groups]
    zeros = jnp.zeros_like(MATRIX)
    tx = aj.chain(aj.sgd(0.1), aj.proximal(0.0, group_l1=strength, groups=groups))
    factor = np.maximum(1 - 0.1 * strength / norms, 0)
    np.testing.assert_allclose(one_step(tx, MATRIX, zeros), MATRIX * factor, rtol=1e-5)
    assert (factor == 0).any()
    penalty = aj.add_penalty(0.0, group_l1=strength, groups=groups)
    direction, _ = penalty.update(zeros, (), MATRIX)
    np.testing.assert_allclose(direction, strength * MATRIX / norms, rtol=1e-5)
    # PyTorch's layout, where the columns are rows.
    torch = aj.MatrixAxes(rows=..., columns=0)
    if groups != "array":
        there = aj.chain(
            aj.sgd(0.1), aj.proximal(0.0, group_l1=strength, groups=groups, axes=torch)
        )
        same = one_step(there, MATRIX.T, zeros.T).T
        np.testing.assert_allclose(same, one_step(tx, MATRIX, zeros), rtol=1e-6)


def test_the_steps_follow_each_other_as_the_formula_says():
    params, gradients = jnp.array([[2.0, -1.0], [0.3, 4.0]]), jnp.array([[1.0, -2.0], [1.0, 1.0]])
    tx = aj.chain(aj.sgd(0.1), aj.proximal(0.5, 2.0, 3.0))
    z = params - 0.1 * gradients
    z = jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.05, 0)
    z = z * jnp.maximum(1 - 0.3 / jnp.linalg.norm(z, axis=0, keepdims=True), 0) / 1.2
    np.testing.assert_allclose(one_step(tx, params, gradients), z, rtol=1e-6)


def test_masks_and_trees():
    params = {"w": jnp.full(3, 0.5), "b": jnp.full(3, 0.5)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    masked = aj.chain(aj.sgd(0.1), aj.proximal(10.0, mask={"w": True, "b": False}))
    new = one_step(masked, params, zeros)
    assert (new["w"] == 0).all()
    assert (new["b"] == 0.5).all()
    trees = aj.chain(aj.sgd({"w": 0.1, "b": 0.01}), aj.proximal({"w": 2.0, "b": 3.0}))
    new = one_step(trees, params, zeros)
    np.testing.assert_allclose(new["w"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(new["b"], 0.47, rtol=1e-6)


def test_the_learning_rate_is_that_of_the_chain():
    """η comes from what is before it: a schedule, a product, in `train_step` too, and in float16."""
    params, zeros = jnp.full(3, 0.5), jnp.zeros(3)
    rate = aj.schedules.piecewise_constant_schedule(0.1, {1: 0.5})
    members = aj.scale_by_adam(), aj.scale_by_learning_rate(rate)
    tx = aj.chain(aj.clip_by_global_norm(1.0), *members, aj.proximal(1.0))
    state = tx.init(params)
    for expected in (-0.1, -0.05):
        updates, state = tx.update(zeros, state, params)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(
        optax.chain(optax.clip_by_global_norm(1.0), *members, optax.identity()).init(params)
    )
    foreign = aj.chain(optax.clip(1.0), aj.sgd(0.1), aj.proximal(1.0), optax.identity())
    np.testing.assert_allclose(one_step(foreign, params, zeros), 0.4, rtol=1e-6)
    half = one_step(tx, params.astype(jnp.float16), zeros.astype(jnp.float16))
    np.testing.assert_allclose(half, 0.4, rtol=1e-3)
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    train = aj.TrainState.create(params, tx)
    np.testing.assert_allclose(step(train, zeros)[0].params, 0.4, rtol=1e-6)
    sweep = jax.vmap(lambda rate: aj.chain(aj.sgd(rate), aj.proximal(1.0)))(jnp.array([0.1, 0.2]))
    new = jax.vmap(lambda tx: one_step(tx, params, zeros))(sweep)
    np.testing.assert_allclose(new[:, 0], [0.4, 0.3], rtol=1e-6)


@pytest.mark.parametrize("rule", [aj.proximal(1.0), aj.hyperball()])
def test_a_learning_rate_that_is_not_known_is_asked_for(rule):
    for member in (optax.adam(0.1), aj.masked(aj.adam(0.1), lambda params: True)):
        with pytest.raises(
            ValueError, match=r"needs the learning rate of what is before it.*learning_rate="
        ):
            aj.chain(member, rule)
    given = aj.chain(optax.sgd(0.1), aj.proximal(1.0, learning_rate=0.1))
    np.testing.assert_allclose(one_step(given, jnp.full(3, 0.5), jnp.zeros(3)), 0.4, rtol=1e-6)
    with pytest.raises(ValueError, match="would multiply by a second one"):
        aj.chain(rule, aj.sgd(0.1))


def test_bounds():
    params = {"w": jnp.array([0.1, 1.0, -1.0, 0.0]), "low": jnp.array([0.1, 2.0], jnp.bfloat16)}
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 3.0), params)
    nonnegative = aj.chain(aj.sgd(0.1), aj.keep_params_nonnegative())
    theirs = optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())
    with jax.numpy_dtype_promotion("standard"):
        ours, others = (one_step(tx, params, gradients) for tx in (nonnegative, theirs))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(x.astype(jnp.float32), y.astype(jnp.float32))
        assert (x >= 0).all()
    np.testing.assert_allclose(ours["w"], [0, 0.7, 0, 0], rtol=1e-6)
    boxed = aj.chain(
        aj.sgd(1.0),
        aj.keep_params_in_box(-0.5, {"w": 0.5, "low": 2.5}, mask={"w": True, "low": False}),
    )
    new = one_step(boxed, params, gradients)
    np.testing.assert_array_equal(new["w"], -0.5)
    np.testing.assert_array_equal(new["low"].astype(jnp.float32), [-2.90625, -1.0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"l1": 0.3, "l2": 0.2, "beta": 0.0, "initial_accumulator_value": 0.1},
        {"l1": 0.3, "weight_decay": 0.3, "beta": 0.5},
        {
            "learning_rate": lambda count: 0.1 * 0.99 ** count.astype(jnp.result_type(float)),
            "l1": 0.3,
        },
    ],
)
def test_ftrl_follows_the_paper(settings, dtype):
    rng = np.random.default_rng(2013)
    gradients = rng.normal(size=(200, 48)) * 10 ** rng.uniform(-3, 1, 48)
    gradients = (gradients * (rng.random(gradients.shape) > 0.1)).astype(dtype).astype(np.float64)
    first = rng.normal(size=48) * (rng.random(48) > 0.3)
    first = first.astype(dtype).astype(np.float64)
    settings = {"learning_rate": 0.1} | settings
    with jax.enable_x64(dtype == "float64"):
        values = {
            k: np.asarray(jax.vmap(x)(jnp.arange(200)), np.float64) if callable(x) else x
            for k, x in settings.items()
        }
        expected = reference.ftrl(gradients, first, **values)
        params = np.cumsum(np.concatenate([first[None], expected]), axis=0)
        tx = aj.ftrl(**settings)

        @jax.jit
        def run(gradients, params):
            def step(state, each):
                updates, state = tx.update(each[0], state, each[1])
                return state, updates

            return jax.lax.scan(step, tx.init(params[0]), (gradients, params))[1]

        actual = run(jnp.asarray(gradients, dtype), jnp.asarray(params[:-1], dtype))
    # What z is a sum of is no larger than the largest parameter so far, times q.
    size = np.maximum.accumulate(np.abs(params), axis=0)[1:] + 1e-3
    error = np.abs(np.asarray(actual, np.float64) - expected) / size
    assert error.max() <= {"float64": 1e-12, "float32": 2e-6}[dtype]


def test_ftrl_starts_where_the_parameters_are():
    params, zeros = jnp.array([1.0, -2.0, 0.0]), jnp.zeros(3)
    for settings in ({}, {"l1": 0.5, "l2": 1.0}, {"beta": 0.0}, {"learning_rate": 0.0, "l1": 0.5}):
        tx = aj.ftrl(**{"learning_rate": 0.1} | settings)
        np.testing.assert_allclose(one_step(tx, params, zeros), params, rtol=1e-6)
    tx = aj.ftrl(0.5, weight_decay=0.1)
    np.testing.assert_allclose(one_step(tx, params, zeros), 0.95 * params, rtol=1e-6)


def test_sparsity_is_measured():
    tx = aj.diagnose(
        aj.chain(aj.sgd(0.1), aj.proximal(10.0)), ("sparsity",), group_by=lambda path: "all"
    )
    params = {"w": jnp.array([0.5, 3.0, -0.5]), "b": jnp.array([2.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params)
    assert state.measured["sparsity"]["all"] == 0.5


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="groups='units'"):
        aj.proximal(0.1, group_l1=0.1, groups="units")
    with pytest.raises(ValueError, match="it has no such groups: give group_l1"):
        aj.add_penalty(0.1, axes=aj.MatrixAxes())
    with pytest.raises(ValueError, match=r"l1=-0\.1 is out of range"):
        aj.proximal(-0.1)
    with pytest.raises(ValueError, match=r"rows=\.\.\. and columns=\.\.\. in MatrixAxes"):
        aj.MatrixAxes(rows=..., columns=...)
    with pytest.raises(ValueError, match=r"params\['w'\].*names the axis 3"):
        aj.centralize(axes=aj.MatrixAxes(rows=..., columns=3)).init({"w": jnp.ones((2, 2))})

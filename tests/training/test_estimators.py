"""Gradients that are made of those of the loss: estimators, each against a computation by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import run

import adaptive_jax as aj


@dataclass(frozen=True)
class PerExample:
    """The mean of clipped gradients of one row each, and noise: Abadi et al. 2016 (DP-SGD)."""

    max_norm: float
    noise: float = 0.0

    def __call__(self, value_and_grad, params, batch, step, key):
        def of_row(row):
            first, g = value_and_grad(params, jax.tree.map(lambda x: x[None], row))
            share = self.max_norm / jnp.maximum(aj.global_norm(g), self.max_norm)
            return first, jax.tree.map(lambda g: share * g, g)

        rows = len(jax.tree.leaves(batch)[0])
        first, gradients = jax.tree.map(lambda x: x.mean(0), jax.vmap(of_row)(batch))
        if self.noise:
            noise = optax.tree.random_like(key, params, jax.random.normal)
            scale = self.noise * self.max_norm / rows
            gradients = jax.tree.map(lambda g, n: g + scale * n, gradients, noise)
        return first, gradients, {}


generator = np.random.default_rng(0)
ROWS = {"x": generator.normal(size=(16, 5)), "y": generator.normal(size=16)}
START = generator.normal(size=5)


def squared_error(w, batch):
    return jnp.mean(jnp.square(batch["x"] @ w - batch["y"]))


def gradient_by_hand(w, batch):
    """That of `squared_error`, in NumPy."""
    return 2 * batch["x"].T @ (batch["x"] @ w - batch["y"]) / len(batch["y"])


def recorder():
    """Keeps the extra arguments of the last update, and makes no update."""

    def init(params):
        return {"hessian_diagonal": params, "has_hessian_diagonal": jnp.bool_(False)}

    def update(updates, state, params=None, *, hessian_diagonal, has_hessian_diagonal, **extra):
        state = {
            "hessian_diagonal": hessian_diagonal,
            "has_hessian_diagonal": jnp.asarray(has_hessian_diagonal),
        }
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def diagonals(loss, params, batch, estimator, count, **settings):
    """So many estimates of the diagonal of the Hessian at the same parameters, one for each step."""
    state = aj.TrainState.create(params, recorder(), rng=jax.random.key(0))
    step = aj.train_step(loss, gradient=estimator, metrics=("loss",), **settings)
    found = []
    for _ in range(count):
        state, _ = step(state, batch)
        found.append(jax.device_get(state.opt_state))
    assert step._jitted._cache_size() == 1
    values = np.stack([each["hessian_diagonal"] for each in found])
    return values, [bool(each["has_hessian_diagonal"]) for each in found]


def assert_mean(values, expected):
    """Within five times what the mean of so many may be off."""
    error = values.std(0) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - expected) < 5 * error + 1e-12)
    assert np.all(error < 0.3 * np.abs(expected).max())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_sharpness_aware_minimisation_is_the_step_of_two_gradients(accumulate):
    """The worst point is that of the whole batch, into however many parts it is split."""
    w = START
    for _ in range(3):
        gradient = gradient_by_hand(w, ROWS)
        worst = w + 0.3 * gradient / np.linalg.norm(gradient)
        w = w - 0.1 * gradient_by_hand(worst, ROWS)
    with jax.enable_x64(True):
        step = aj.train_step(
            squared_error, accumulate=accumulate, gradient=aj.sam(0.3), loss_scale=8.0
        )
        state = aj.TrainState.create(jnp.asarray(START), aj.sgd(0.1))
        before = [squared_error(START, ROWS)]
        state, history = aj.fit(state, step, [ROWS] * 3, progress=False)
        np.testing.assert_allclose(state.params, w, rtol=1e-12)
        np.testing.assert_allclose(history["loss"][0], before[0], rtol=1e-12)
        assert step._jitted._cache_size() == 1


@jax.numpy_dtype_promotion("standard")
def test_sharpness_aware_minimisation_of_complex_parameters():
    """As of their real and imaginary parts."""

    def loss(z, batch):
        return jnp.sum(jnp.abs(z) ** 4 * batch)

    def of_parts(parts, batch):
        return jnp.sum(jnp.sum(jnp.square(parts), 0) ** 2 * batch)

    batch, z = jnp.array([1.0, 2.0]), jnp.array([0.3 + 0.5j, -0.4 + 0.1j])
    results = []
    for function, params in ((loss, z), (of_parts, jnp.stack([z.real, z.imag]))):
        step = aj.train_step(function, gradient=aj.sam(0.2))
        results.append(run(step, aj.TrainState.create(params, aj.sgd(0.1)), [batch] * 3)[0].params)
    expected = results[1][0] + 1j * results[1][1]
    np.testing.assert_allclose(results[0], expected, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_mean_of_hutchinsons_estimates_is_the_diagonal_of_the_hessian(accumulate):
    def loss(w, batch):
        return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ w) - batch["y"]))

    with jax.enable_x64(True):
        w = jnp.asarray(START)
        expected = np.diag(jax.hessian(loss)(w, ROWS))
        values, has = diagonals(loss, w, ROWS, aj.hutchinson(), 120, accumulate=accumulate)
    assert all(has)
    assert_mean(values, expected)


def test_hutchinsons_estimate_of_a_diagonal_hessian_is_exact_and_comes_every_so_many_steps():
    with jax.enable_x64(True):
        w, batch = jnp.asarray(START), jnp.asarray(ROWS["y"][:5])
        values, has = diagonals(
            lambda w, batch: jnp.sum(batch * w**4), w, batch, aj.hutchinson(every=3), 7
        )
    assert has == [True, False, False, True, False, False, True]
    np.testing.assert_allclose(values[::3], [12 * ROWS["y"][:5] * START**2] * 3, rtol=1e-12)
    assert not values[1].any()


def test_the_mean_of_gauss_newton_bartlett_estimates_is_the_gauss_newton_diagonal():
    """For a logistic regression that is the Hessian's: the mean of x² p (1 - p)."""

    def loss(w, batch):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(batch["x"] @ w, batch["y"]))

    def sampled_loss(w, batch, key):
        logits = batch["x"] @ w
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, drawn))

    with jax.enable_x64(True):
        values, _ = diagonals(
            loss, jnp.asarray(START), ROWS, aj.gauss_newton_bartlett(sampled_loss, 1), 200
        )
    probability = 1 / (1 + np.exp(-ROWS["x"] @ START))
    spread = probability * (1 - probability)
    assert_mean(values, np.mean(ROWS["x"] ** 2 * spread[:, None], 0))


def test_gradients_clipped_per_example_are_those_of_a_loop():
    max_norm, total, losses = 1.5, np.zeros(5), []
    for x, y in zip(ROWS["x"], ROWS["y"], strict=True):
        row = {"x": x[None], "y": y[None]}
        gradient = gradient_by_hand(START, row)
        total += gradient * min(1, max_norm / np.linalg.norm(gradient))
        losses.append((x @ START - y) ** 2)
    with jax.enable_x64(True):
        # A batch of the estimator's own is taken whole.
        step = aj.train_step(squared_error, accumulate=2, gradient=PerExample(max_norm))
        state, metrics = step(aj.TrainState.create(jnp.asarray(START), aj.sgd(1.0)), ROWS)
        np.testing.assert_allclose(state.params, START - total / 16, rtol=1e-12)
        np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-12)
    wide = {"x": np.zeros((4, 5000), np.float32), "y": np.zeros(4, np.float32)}
    noisy = aj.train_step(squared_error, gradient=PerExample(max_norm, noise=2.0))
    state = aj.TrainState.create(jnp.zeros(5000), aj.sgd(1.0), rng=jax.random.key(1))
    state, _ = noisy(state, wide)
    first = np.array(state.params)
    state, _ = noisy(state, wide)
    second = np.array(state.params) - first
    for drawn in (first, second):
        assert np.std(drawn) == pytest.approx(2.0 * max_norm / 4, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_model_state_aux_and_random_numbers_are_those_of_what_is_handed_back():
    """Each evaluation starts from the state's model state, with one key; the key of the estimator
    is another one than those of the parts.
    """

    def loss(w, batch, model_state, rng):
        value = jnp.mean(batch) * w**2 * jax.random.uniform(rng)
        return value, {"calls": model_state["calls"] + 1, "seen": w}, jax.random.key_data(rng)

    keys = []

    def estimator(value_and_grad, w, batch, step, key):
        first, _ = value_and_grad(w)
        elsewhere, gradient = value_and_grad(w + 1)
        keys.append(key)
        chosen = first._replace(model_state=elsewhere.model_state)
        return chosen, gradient, {}

    step = aj.train_step(loss, has_aux=True, accumulate=2, gradient=estimator)
    plain = aj.train_step(loss, has_aux=True, accumulate=2)

    def create(w):
        model_state = {"calls": jnp.int32(0), "seen": jnp.float32(0)}
        return aj.TrainState.create(
            jnp.float32(w), aj.sgd(0.1), model_state=model_state, rng=jax.random.key(5)
        )

    state, metrics = step(create(2.0), jnp.ones(4))
    at_two, expected = plain(create(2.0), jnp.ones(4))
    at_three, _ = plain(create(3.0), jnp.ones(4))
    assert state.model_state == {"calls": 2, "seen": 3.0}
    assert metrics["loss"] == expected["loss"]
    np.testing.assert_array_equal(metrics["aux"], expected["aux"])
    np.testing.assert_allclose(state.params - 2.0, at_three.params - 3.0, rtol=1e-5)
    assert at_two.params != state.params


def test_low_precision_and_parameters_of_few_bits():
    """Gradients have the dtype that those of the loss have, whatever the estimator makes of them."""

    def wide(value_and_grad, params, batch, step, key):
        first, gradients = value_and_grad(jax.tree.map(lambda x: x.astype(jnp.float32), params))
        return first, gradients, {}

    seen = []

    def update(updates, state, params=None, **extra):
        seen.append({name: x.dtype for name, x in updates.items()})
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float8_e4m3fn)}

    def loss(params, batch):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in params.values()) * batch.astype(
            jnp.float32
        )

    for compute_dtype in (None, jnp.bfloat16):
        step = aj.train_step(loss, gradient=wide, metrics=(), compute_dtype=compute_dtype)
        step.lower(aj.TrainState.create(params, tx), jnp.bfloat16(1))
        assert seen[-1] == {"a": jnp.bfloat16, "b": jnp.float32}


def test_the_optimizer_gets_value_grad_and_value_fn_of_the_whole_batch():
    """Unscaled, and of what the estimator handed back."""

    def init(params):
        return {"value": jnp.float32(0), "again": jnp.float32(0), "grad": params}

    def update(updates, state, params=None, *, value, grad, value_fn, **extra):
        state = {"value": value, "again": value_fn(params), "grad": grad}
        return updates, state

    tx = optax.GradientTransformationExtraArgs(init, update)
    batch = jax.tree.map(jnp.float32, ROWS)
    w = jnp.float32(START)
    expected = jax.value_and_grad(squared_error)(w, batch)

    def doubled(value_and_grad, params, batch, step, key):
        first, gradients = value_and_grad(params, batch)
        return first, 2 * gradients, {}

    for estimator, factor in ((None, 1), (doubled, 2)):
        step = aj.train_step(
            squared_error, accumulate=4, loss_scale=64.0, gradient=estimator, metrics=("loss",)
        )
        state, metrics = step(aj.TrainState.create(w, tx), batch)
        for value in (state.opt_state["value"], state.opt_state["again"], metrics["loss"]):
            np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(state.opt_state["grad"], factor * expected[1], rtol=1e-5)


def test_a_step_whose_extra_arguments_are_not_finite_is_skipped():
    def estimator(value_and_grad, params, batch, step, key):
        first, gradients = value_and_grad(params)
        return first, gradients, {"hessian_diagonal": gradients / batch, "note": "not a number"}

    step = aj.train_step(lambda w, batch: jnp.sum(w**2), gradient=estimator, skip_nonfinite=True)
    with pytest.warns(UserWarning, match=DROPPED) as told:
        state, _ = run(step, aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), [1.0, 0.0, 1.0])
    assert len(told) == 1
    assert (state.step, state.skipped) == (3, 1)


DROPPED = (
    r"gradient=estimator makes hessian_diagonal, note for the optimizer, and nothing in sgd.* takes"
)


@dataclass(frozen=True)
class Newton(aj.Rule):
    """g/h, with the last diagonal h of the Hessian that there was."""

    slots = {"hessian": aj.Slot(1.0, nonnegative=True)}
    extra_args = {"hessian_diagonal": "array", "has_hessian_diagonal": "number"}

    def update(self, grad, slots, param, ctx):
        has = ctx.extra["has_hessian_diagonal"].astype(bool)
        new = jnp.where(has, ctx.extra["hessian_diagonal"], slots["hessian"])
        hessian = ctx.store("hessian", new)
        return grad / hessian, {"hessian": hessian}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_rule_gets_what_the_estimator_estimates(parts):
    """A quadratic function with a diagonal Hessian is at its minimum after one step, or one group."""
    curvature, minimum = jnp.array([1.0, 5.0, 0.2]), jnp.array([1.0, -2.0, 3.0])

    def loss(w, batch):
        return jnp.sum(curvature * (w - minimum) ** 2) * jnp.mean(batch)

    tx = aj.transform(Newton(), aj.LearningRate(1.0))
    tx = aj.skip_nonfinite(aj.multi_steps(tx, parts) if parts > 1 else tx)
    step = aj.train_step(
        loss, gradient=aj.hutchinson(every=2), accumulate=parts, compute_dtype=jnp.float32
    )
    state = aj.TrainState.create(jnp.zeros(3), tx, rng=jax.random.key(0))
    state, _ = run(step, state, [jnp.ones(4)] * parts)
    np.testing.assert_allclose(state.params, minimum, rtol=1e-6)


def test_an_estimator_in_a_sweep():
    def make(learning_rate, seed):
        return aj.TrainState.create(jnp.float32(START), aj.sgd(learning_rate))

    batches = [jax.tree.map(jnp.float32, ROWS)] * 2
    step = aj.train_step(squared_error, gradient=aj.sam())
    found = aj.sweep(make, step=step, batches=batches, learning_rate=[0.05, 0.1], progress=False)
    for row, rate in enumerate([0.05, 0.1]):
        _, metrics = run(step, make(rate, 0), batches)
        expected = [each["loss"] for each in metrics]
        np.testing.assert_allclose(found.outputs["loss"][row, 0], expected, rtol=1e-5)


def returns(make):
    """An estimator of what make makes of the right answer."""

    def estimator(value_and_grad, params, batch, step, key):
        return make(*value_and_grad(params), step, key)

    return estimator


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f, g, *_: (f, g), TypeError, r"must return \(first, gradients, extra_args\)"),
        (lambda f, g, *_: (f.loss, g, {}), TypeError, "must return first what value_and_grad"),
        (lambda f, g, *_: (tuple(f), g, {}), TypeError, "must return first what value_and_grad"),
        (
            lambda f, g, *_: (f._replace(loss=jnp.ones(3)), g, {}),
            TypeError,
            r"the loss that gradient=estimator returned is float32\[3\]: it must be one real number",
        ),
        (
            lambda f, g, *_: (f._replace(model_state=1), g, {}),
            ValueError,
            "the model state that gradient=estimator returned differs from the model state",
        ),
        (
            lambda f, g, *_: (f, g["w"], {}),
            ValueError,
            "the params and the gradients that gradient=estimator returned differ in str",
        ),
        (
            lambda f, g, *_: (f, {"w": jnp.ones(3)}, {}),
            ValueError,
            r"gradient=estimator returned\['w'\] is float32\[3\], but params has float32\[2\]",
        ),
        (
            lambda f, g, *_: (f, {"w": jnp.arange(2)}, {}),
            TypeError,
            r"gradients that gradient=estimator returned\['w'\] is int32\[2\]",
        ),
        (lambda f, g, *_: (f, g, None), TypeError, "at the end a dict of extra arguments.*None"),
        (lambda f, g, *_: (f, g, {1: 2}), TypeError, "at the end a dict of extra arguments"),
        (
            lambda f, g, *_: (f, g, {"value": f.loss}),
            ValueError,
            "extra argument 'value', and train_step itself hands on value, grad, value_fn",
        ),
        (
            lambda f, g, step, key: (f, g, {"x": jax.random.normal(key)}),
            ValueError,
            r"gradient=estimator takes key, and the state has none.*rng=jax.random.key",
        ),
        (
            lambda f, g, step, key: (f, g, {} if step % 2 else {"due": True}),
            TypeError,
            "gradient=estimator branches on the step, or another number",
        ),
    ],
    ids=range(13),
)
def test_what_an_estimator_returns_is_checked(make, error, message):
    step = aj.train_step(lambda p, batch: jnp.sum(p["w"] ** 2) * batch, gradient=returns(make))
    state = aj.TrainState.create({"w": jnp.ones(2)}, aj.sgd(0.1))
    with pytest.raises(error, match=message):
        step.lower(state, 1.0)


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (3, r"gradient=3 must be a function of \(value_and_grad, params, batch, step, key\)"),
        (PerExample, r"is a class: give one of it, gradient=PerExample\(…\)"),
        (lambda value_and_grad, params: None, "must be a function of .*too many positional"),
    ],
    ids=range(3),
)
def test_what_is_no_estimator_is_refused(gradient, message):
    with pytest.raises(TypeError, match=message):
        aj.train_step(squared_error, gradient=gradient)


def test_a_function_with_its_options_is_an_estimator():
    def scaled(value_and_grad, params, batch, step, key, factor):
        first, gradients = value_and_grad(params)
        return first, jax.tree.map(lambda g: factor * g, gradients), {}

    step = aj.train_step(lambda w, b: jnp.sum(w * b), gradient=partial(scaled, factor=3.0))
    state, _ = step(aj.TrainState.create(jnp.zeros(2), aj.sgd(1.0)), jnp.ones(2))
    np.testing.assert_array_equal(state.params, -3.0)


# Those of the library.


def evaluated(loss):
    """What `train_step` hands to an estimator, without a step around it."""
    return lambda params, batch=None: jax.value_and_grad(loss)(params)


def test_gradients_of_zero_stay_zero_and_small_ones_have_the_whole_radius():
    """Where optax.contrib.normalize divides zero by zero."""
    for estimator in (aj.sam(0.1), aj.asam(0.1, mask=True)):
        _, gradients, extra = estimator(
            evaluated(lambda w: jnp.sum(w**2)), jnp.zeros(3), None, 0, None
        )
        np.testing.assert_array_equal(gradients, 0.0)
        assert extra == {}
    gradients = jnp.array([6e-30, 8e-30])
    worst = aj.sam(0.1).worst(jnp.array([3.0, 4.0]), gradients, 0)
    np.testing.assert_allclose(worst, [3.06, 4.08], rtol=1e-6)


def asam_by_hand(params, gradients, rho, eta, adaptive):
    """Kwon et al. 2021, as in their code: e = ρT²g/‖Tg‖, T = |θ| + η of what is adaptive."""
    units = {k: np.abs(w) + eta if adaptive[k] else np.ones_like(w) for k, w in params.items()}
    norm = np.sqrt(sum(np.sum((units[k] * g) ** 2) for k, g in gradients.items()))
    return {k: w + rho * units[k] ** 2 * gradients[k] / norm for k, w in params.items()}


def test_adaptive_sharpness_moves_each_parameter_in_its_own_unit():
    params = {"w": np.arange(-3.0, 3.0).reshape(2, 3), "b": np.array([2.0, -1.0])}
    gradients = {k: generator.normal(size=w.shape) for k, w in params.items()}
    with jax.enable_x64(True):
        for given, eta, adaptive in (
            ({}, 0.01, {"w": True, "b": False}),
            ({"eta": 0.0, "mask": True}, 0.0, {"w": True, "b": True}),
        ):
            expected = asam_by_hand(params, gradients, 0.7, eta, adaptive)
            trees = (jax.tree.map(jnp.asarray, x) for x in (params, gradients))
            found = aj.asam(0.7, **given).worst(*trees, 0)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, expected)


def test_adaptive_sharpness_does_not_see_how_layers_are_scaled():
    """f(a, b) = F(ab) is the same at (ca, b/c): so is what it grows to nearby, of T = |θ|."""

    def loss(params):
        return (params["a"][0] * params["b"][0] - 3.0) ** 2

    found = []
    for c in (1.0, 16.0):
        params = {"a": jnp.array([2.0 * c]), "b": jnp.array([1.0 / c])}
        worst = aj.asam(0.1, eta=0.0, mask=True).worst(params, jax.grad(loss)(params), 0)
        found.append(loss(worst))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_the_radius_is_data():
    """It may be a tracer, many, or a schedule, and a new one compiles nothing in a jit of one's own."""
    calls = []

    @jax.jit
    def gradient(estimator, w):
        calls.append(estimator)
        return estimator(evaluated(lambda w: jnp.sum(w**4)), w, None, jnp.int32(3), None)[1]

    w = jnp.array([1.0, 2.0])
    one = [gradient(aj.sam(rho), w) for rho in (0.1, 0.2)]
    assert len(calls) == 1
    many = jax.vmap(lambda rho: gradient(aj.sam(rho), w))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(many, one, rtol=1e-6)
    falling = aj.sam(aj.schedules.linear_schedule(0.4, 0.0, 4))  # 0.1 after three steps.
    np.testing.assert_allclose(gradient(falling, w), one[0], rtol=1e-5)
    plain = aj.sam(lambda count: 0.4 - 0.1 * count.astype(jnp.float32))
    np.testing.assert_allclose(gradient(plain, w), one[0], rtol=1e-5)
    assert repr(aj.sam(0.1)) == "sam(rho=0.1)"
    assert repr(aj.hutchinson(3)) == "hutchinson(every=3, vector='signs')"


def test_the_point_nearby_of_low_precision_parameters_is_in_float32():
    """In bfloat16 a radius of a 256th of a parameter would be rounded away."""
    seen = []

    def loss(w, batch):
        seen.append(w.dtype)
        return jnp.sum(w.astype(jnp.float32) ** 2) * batch

    step = aj.train_step(loss, gradient=aj.sam(1e-3))
    state = aj.TrainState.create(jnp.full(4, 1.0, jnp.bfloat16), aj.sgd(0.5))
    state, _ = step(state, jnp.float32(1.0))
    assert {*seen} == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    worst = aj.sam(1e-3).worst(jnp.ones(4, jnp.bfloat16), jnp.ones(4, jnp.bfloat16), 0)
    np.testing.assert_allclose(worst, 1 + 5e-4, rtol=1e-6)


def branches(step, state, batch):
    """How many conditionals there are in a compiled step that have a dear side."""
    text = step.lower(state, batch).as_text()
    return text.count("stablehlo.case") + text.count("stablehlo.if")


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton_bartlett"])
def test_an_estimate_that_is_not_due_is_not_computed_in_a_sweep_either(estimator):
    """A branch under vmap too, and the estimates are those of single runs."""

    def sampled_loss(w, batch, key):
        return jnp.mean((batch["x"] @ w - jax.random.normal(key, (16,))) ** 2) / 2

    made = {
        "hutchinson": aj.hutchinson(every=2),
        "gauss_newton_bartlett": aj.gauss_newton_bartlett(sampled_loss, every=2),
    }[estimator]
    step = aj.train_step(squared_error, gradient=made, metrics=("loss",))
    batch = jax.tree.map(jnp.float32, ROWS)

    def create(rate):
        tx = aj.sophia(rate, gamma=0.1)
        return aj.TrainState.create(jnp.float32(START), tx, rng=jax.random.key(0))

    assert branches(step, create(0.1), batch) == 1
    rates = jnp.array([0.05, 0.1])

    def run_some(rate):
        state = create(rate)
        for _ in range(3):
            state, _ = step(state, batch)
        return state.params

    swept = jax.jit(jax.vmap(run_some))
    text = swept.lower(rates).as_text()
    assert text.count("stablehlo.case") + text.count("stablehlo.if") == 3
    np.testing.assert_allclose(swept(rates), [run_some(rate) for rate in rates], rtol=1e-5)


def test_normal_vectors_have_the_diagonal_as_their_mean():
    with jax.enable_x64(True):
        w, batch = jnp.asarray(START), jnp.asarray(ROWS["y"][:5])
        estimator = aj.hutchinson(vector="normal")
        values, _ = diagonals(lambda w, b: jnp.sum(b * w**4), w, batch, estimator, 300)
    assert_mean(values, 12 * ROWS["y"][:5] * START**2)


def test_the_number_of_terms_is_that_of_tokens_where_it_is_said():
    """Of a mean over 4 rows of 3 tokens: what it is off by, the estimate is."""

    def sampled_loss(w, batch, key):
        del key
        return jnp.mean(batch["x"] * w)

    def of(**given):
        estimator = aj.gauss_newton_bartlett(sampled_loss, every=1, **given)
        both = evaluated(lambda w: sampled_loss(w, batch, None))
        return estimator(both, jnp.float32(1.0), batch, 0, jax.random.key(0))[2]["hessian_diagonal"]

    batch = {"x": jnp.ones((4, 3))}
    found = of(), of(terms=12), of(terms=lambda batch: batch["x"].size)
    np.testing.assert_allclose(found, (4, 12, 12), rtol=1e-6)


@pytest.mark.parametrize("kind", ["hutchinson", "sam", "asam"])
def test_on_a_mesh_the_estimates_are_those_of_one_device(kind, make_mesh):
    """Of parameters and batches that are divided, Auto and Explicit."""
    mesh = make_mesh(4)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    estimator = {"hutchinson": aj.hutchinson(every=2), "sam": aj.sam(0.1), "asam": aj.asam(0.1)}[
        kind
    ]
    tx = aj.adahessian(0.1) if kind == "hutchinson" else aj.sgd(0.1)

    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch) ** 2) * jnp.sum(params["w"] ** 4) + jnp.sum(
            params["b"] ** 2
        )

    found = []
    for place, whole in ((jnp.asarray, jnp.asarray), (None, None)):
        if place is None:
            place = lambda x: jax.device_put(x, split)  # noqa: E731
            whole = lambda x: jax.device_put(x, everywhere)  # noqa: E731
        params = {"w": place(np.linspace(1, 2, 16, dtype=np.float32).reshape(8, 2))}
        params["b"] = whole(np.ones(3, np.float32))
        state = aj.TrainState.create(params, tx, rng=jax.random.key(0))
        step = aj.train_step(loss, gradient=estimator, metrics=("loss",))
        for _ in range(3):
            state, _ = step(state, place(np.linspace(0, 1, 8, dtype=np.float32)))
        assert step._jitted._cache_size() == 1
        found.append(jax.device_get(state.params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *found)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: aj.hutchinson(0), ValueError, "every=0 must be a whole number"),
        (lambda: aj.hutchinson(vector="gauss"), ValueError, "vector='gauss' is not known"),
        (
            lambda: aj.gauss_newton_bartlett(3),
            TypeError,
            r"sampled_loss=3 must be a function of \(",
        ),
        (lambda: aj.gauss_newton_bartlett(len, terms=0), ValueError, "terms=0 must be a whole"),
        (lambda: aj.sam(-1.0), ValueError, "rho=-1.0 is out of range in sam"),
        (lambda: aj.sam(None), TypeError, "rho=None in sam: it must be a number"),
        (lambda: aj.asam(eta=lambda count: count), TypeError, "eta=.* must be a number"),
        (lambda: aj.asam(mask=3), TypeError, "mask is int32"),
    ],
    ids=range(8),
)
def test_arguments_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_hessian_of_complex_parameters_is_refused_by_path():
    step = aj.train_step(
        lambda p, batch: jnp.sum(jnp.abs(p["z"]) ** 2) * batch, gradient=aj.hutchinson()
    )
    params = {"z": jnp.ones(2, jnp.complex64)}
    state = aj.TrainState.create(params, aj.sgd(0.1), rng=jax.random.key(0))
    with pytest.raises(
        TypeError, match=r"params\['z'\] is complex64\[2\], and hutchinson estimates"
    ):
        step(state, 1.0)

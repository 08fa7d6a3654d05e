"""Gradients that are made of those of the loss: four estimators, each against a computation by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import run

import adaptive_jax as aj


@dataclass(frozen=True)
class SharpnessAware:
    """The gradient at the worst point nearby: Foret et al. 2021, https://arxiv.org/abs/2010.01412."""

    radius: float = 0.05

    def __call__(self, value_and_grad, params, batch, step, key):
        first, gradients = value_and_grad(params)
        scale = self.radius / aj.global_norm(gradients)
        worst = jax.tree.map(lambda p, g: p + scale * g, params, aj.maths.ascent(gradients))
        return first, value_and_grad(worst)[1], {}


@dataclass(frozen=True)
class Hutchinson:
    """v ⊙ Hv, of random signs v, which has the mean diag H: Yao et al. 2021 (AdaHessian)."""

    every: int = 1

    def __call__(self, value_and_grad, params, batch, step, key):
        def estimate():
            signs = optax.tree.random_like(key, params, jax.random.rademacher)
            product = jax.jvp(lambda at: value_and_grad(at)[1], (params,), (signs,))[1]
            return jax.tree.map(jnp.multiply, signs, product)

        first, gradients = value_and_grad(params)
        due = step % self.every == 0
        diagonal = jax.lax.cond(due, estimate, lambda: jax.tree.map(jnp.zeros_like, params))
        return first, gradients, {"hessian_diagonal": diagonal, "has_hessian_diagonal": due}


@dataclass(frozen=True)
class GaussNewtonBartlett:
    """B · g ⊙ g, of a loss with labels drawn from the model: Liu et al. 2023 (Sophia-G)."""

    sampled_loss: Any

    def __call__(self, value_and_grad, params, batch, step, key):
        first, gradients = value_and_grad(params)
        rows = len(jax.tree.leaves(batch)[0])
        sampled = jax.grad(self.sampled_loss)(params, batch, key)
        diagonal = jax.tree.map(lambda g: rows * g**2, sampled)
        return first, gradients, {"hessian_diagonal": diagonal, "has_hessian_diagonal": True}


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
            squared_error, accumulate=accumulate, gradient=SharpnessAware(0.3), loss_scale=8.0
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
        step = aj.train_step(function, gradient=SharpnessAware(0.2))
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
        values, has = diagonals(loss, w, ROWS, Hutchinson(), 120, accumulate=accumulate)
    assert all(has)
    assert_mean(values, expected)


def test_hutchinsons_estimate_of_a_diagonal_hessian_is_exact_and_comes_every_so_many_steps():
    with jax.enable_x64(True):
        w, batch = jnp.asarray(START), jnp.asarray(ROWS["y"][:5])
        values, has = diagonals(
            lambda w, batch: jnp.sum(batch * w**4), w, batch, Hutchinson(every=3), 7
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
            loss, jnp.asarray(START), ROWS, GaussNewtonBartlett(sampled_loss), 200
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
    state, _ = run(step, aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), [1.0, 0.0, 1.0])
    assert (state.step, state.skipped) == (3, 1)


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
        loss, gradient=Hutchinson(every=2), accumulate=parts, compute_dtype=jnp.float32
    )
    state = aj.TrainState.create(jnp.zeros(3), tx, rng=jax.random.key(0))
    state, _ = run(step, state, [jnp.ones(4)] * parts)
    np.testing.assert_allclose(state.params, minimum, rtol=1e-6)


def test_an_estimator_in_a_sweep():
    def make(learning_rate, seed):
        return aj.TrainState.create(jnp.float32(START), aj.sgd(learning_rate))

    batches = [jax.tree.map(jnp.float32, ROWS)] * 2
    step = aj.train_step(squared_error, gradient=SharpnessAware())
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
        (SharpnessAware, r"is a class: give one of it, gradient=SharpnessAware\(…\)"),
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

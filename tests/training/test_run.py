"""The training step and the loop, against loops written by hand with optax."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import signal
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adaptive_jax as aj

rng = np.random.default_rng(0)
PARAMS = {
    "hidden": jnp.asarray(rng.normal(size=(5, 8)) / 2, jnp.float32),
    "bias": jnp.zeros((1, 8)),
    "output": jnp.asarray(rng.normal(size=(8, 1)) / 2, jnp.float32),
}
INPUTS = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
BATCH = {"inputs": INPUTS, "targets": jnp.sin(INPUTS.sum(1, keepdims=True))}


def network(params, inputs):
    return jnp.tanh(inputs @ params["hidden"] + params["bias"]) @ params["output"]


def mean_squared_error(params, batch):
    return jnp.mean(jnp.square(network(params, batch["inputs"]) - batch["targets"]))


def by_hand(tx, loss_fn, params, batches):
    """What users write around optax."""

    @jax.jit
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
    return params, opt_state, np.array(losses)


def run(step, state, batches):
    all_metrics = []
    for batch in batches:
        state, metrics = step(state, batch)
        all_metrics.append(metrics)
    return state, all_metrics


def assert_close(got, expected, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), got, expected
    )


def test_it_is_the_loop_written_by_hand():
    """In the last bit: 1 - b is exact inside of the step too."""
    batches = [jax.tree.map(lambda x, i=i: jnp.roll(x, i, 0), BATCH) for i in range(20)]
    tx = aj.chain(aj.clip_by_global_norm(0.1), aj.adamw(0.01, weight_decay=0.1))
    params, opt_state, losses = by_hand(tx, mean_squared_error, PARAMS, batches)
    step = aj.train_step(mean_squared_error)
    state, metrics = run(step, aj.TrainState.create(PARAMS, tx), batches)
    assert_close(state.params, params, 1e-7)
    assert_close(state.opt_state, opt_state, 1e-7)
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=1e-6)
    theirs = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))
    with jax.numpy_dtype_promotion("standard"):
        expected, _, _ = by_hand(theirs, mean_squared_error, PARAMS, batches)
        step = aj.train_step(mean_squared_error, metrics=("loss",))
        state, _ = run(step, aj.TrainState.create(PARAMS, theirs), batches)
    assert_close(state.params, expected)
    assert_close(params, expected, 1e-4)


def test_a_new_learning_rate_compiles_nothing_and_nothing_else_compiles_twice():
    step = aj.train_step(mean_squared_error)
    state = aj.TrainState.create(PARAMS, aj.adam(0.01))
    for rate in (0.01, 0.02, 0.03):
        state = state.replace(tx=aj.adam(rate))
        state, metrics = step(state, BATCH)
        state, metrics = step(state, BATCH)
        assert float(metrics["learning_rate"]) == pytest.approx(rate)
    assert step._jitted._cache_size() == 1
    assert repr(state.tx).startswith("adam(learning_rate=0.03, b1=0.9, b2=0.999")
    assert state.step == 6


def test_the_users_arrays_stay():
    params = jax.tree.map(jnp.copy, PARAMS)
    state = aj.TrainState.create(params, aj.adam(0.01))
    new, _ = aj.train_step(mean_squared_error)(state, BATCH)
    assert np.isfinite(params["hidden"]).all()
    assert state.params["hidden"].is_deleted()
    handed_over = aj.TrainState.create(params, aj.adam(0.01), copy=False)
    assert handed_over.params is params
    assert not new.params["hidden"].is_deleted()


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_the_whole_batch(parts):
    tx = aj.adam(0.01)
    whole, whole_metrics = run(
        aj.train_step(mean_squared_error, metrics=("loss", "gradient_norm")),
        aj.TrainState.create(PARAMS, tx),
        [BATCH] * 5,
    )
    step = aj.train_step(mean_squared_error, accumulate=parts, metrics=("loss", "gradient_norm"))
    state, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 5)
    assert_close(state.params, whole.params)
    assert_close(metrics, whole_metrics)


def test_accumulation_needs_the_memory_of_one_part_and_compiles_the_model_once():
    params = {"w": jnp.ones((64, 64)), "v": jnp.ones((64, 64))}
    traced = []

    def loss(params, batch):
        traced.append(batch.shape)
        x = batch
        for _ in range(6):
            x = jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"])
        return jnp.mean(x)

    def compiled(rows, **settings):
        state = aj.TrainState.create(params, aj.adam(0.01))
        return aj.train_step(loss, **settings).lower(state, jnp.ones((rows, 64))).compile()

    one = compiled(512)
    traced.clear()
    eight = compiled(8 * 512, accumulate=8)
    assert set(traced) == {(512, 64)}
    assert len(traced) <= 3  # The shape of the loss, the scan, and its fixed point.
    assert eight.as_text().count("tanh(") <= 1.1 * one.as_text().count("tanh(")
    temporaries = [each.memory_analysis().temp_size_in_bytes for each in (one, eight)]
    assert temporaries[1] <= 1.1 * temporaries[0]


def test_a_key_for_every_step_and_part():
    def loss(params, batch, rng):
        noise = jax.random.uniform(rng)
        return params * noise, noise

    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    again = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    step = aj.train_step(loss, has_aux=True)
    _, first = run(step, state, [jnp.zeros(4)] * 3)
    _, second = run(step, again, [jnp.zeros(4)] * 3)
    noise = [float(m["aux"]) for m in first]
    assert len(set(noise)) == 3
    assert noise == [float(m["aux"]) for m in second]
    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    _, metrics = aj.train_step(loss, has_aux=True, accumulate=4)(state, jnp.zeros(4))
    assert len({float(x) for x in metrics["aux"]}) == 4
    with pytest.raises(ValueError, match=r"takes rng, and the state has none.*rng=jax.random.key"):
        step(aj.TrainState.create(jnp.ones(()), aj.sgd(0.0)), jnp.zeros(4))


@pytest.mark.parametrize("parts", [1, 2])
def test_model_state_goes_through(parts):
    def loss(params, batch, model_state):
        mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch)
        return params * jnp.mean(batch), {"mean": mean}, mean

    step = aj.train_step(loss, has_aux=True, accumulate=parts)
    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.1), model_state={"mean": jnp.zeros(())})
    state, metrics = step(state, jnp.full(4, 2.0))
    expected = 0.2 if parts == 1 else 0.9 * 0.2 + 0.2
    assert float(state.model_state["mean"]) == pytest.approx(expected)
    assert metrics["aux"].shape == (() if parts == 1 else (parts,))
    assert float(state.params) == pytest.approx(0.8)


def test_a_step_that_is_not_finite_changes_no_bit():
    def loss(params, batch, model_state):
        return jnp.sum(params["w"] * batch), {"seen": model_state["seen"] + batch[0]}

    step = aj.train_step(loss, skip_nonfinite=True)
    params = {"w": jnp.array([0.0, -0.0, 1.0])}
    create = aj.TrainState.create
    state = create(params, aj.adam(0.1), model_state={"seen": jnp.zeros(())})
    state, _ = step(state, jnp.ones(3))
    kept = (state.params, state.opt_state, state.model_state)
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(kept)]
    for bad in (jnp.nan, jnp.inf):
        state, metrics = step(state, jnp.array([1.0, bad, 1.0]))
    after = (state.params, state.opt_state, state.model_state)
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(after)] == before
    assert state.skipped == metrics["skipped"] == 2
    assert state.step == 3
    state, metrics = step(state, jnp.ones(3))
    assert metrics["skipped"] == 2
    assert state.opt_state[0].count == 2


def test_a_loss_scale_that_adapts():
    """In float16, gradients of 1e-8 are zero, and 2^16 is infinite."""

    def loss(params, batch):
        return jnp.sum(params * batch)

    batch = jnp.full(2, 1e-8)
    plain = aj.train_step(loss, compute_dtype=jnp.float16)
    state, _ = plain(aj.TrainState.create(jnp.ones(2), aj.sgd(1e6)), batch)
    np.testing.assert_array_equal(state.params, 1.0)

    def scaled_loss(params, batch):  # The gradient's cast is what underflows: batch is float32.
        return jnp.sum((params.astype(jnp.float16) * batch.astype(jnp.float16)).astype(jnp.float32))

    scale = aj.LossScale(2.0**17, growth_interval=3)
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale)
    step = aj.train_step(scaled_loss)
    state, _ = step(state, jnp.ones(2))  # 2^17 is infinite in float16: skipped.
    np.testing.assert_array_equal(state.params, 1.0)
    assert (state.loss_scale.scale, state.skipped) == (2.0**16, 1)
    state, _ = step(state, jnp.ones(2))
    assert (state.loss_scale.scale, state.skipped) == (2.0**15, 2)
    for _ in range(3):
        state, _ = step(state, jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.7, rtol=1e-6)
    assert (state.loss_scale.scale, state.skipped, state.loss_scale.good_steps) == (2.0**16, 2, 0)
    constant = aj.train_step(scaled_loss, loss_scale=1024.0)
    state, _ = constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.9, rtol=1e-6)
    bad = jnp.bool_(False)
    shrunk = [float(aj.LossScale(each).after(bad).scale) for each in (4.0, 1.5, 1.0, 0.25)]
    assert shrunk == [2.0, 1.0, 1.0, 0.25]
    with pytest.raises(ValueError, match="give one"):
        constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale), jnp.ones(2))


def test_computing_in_bfloat16():
    seen = []

    def loss(params, batch):
        seen.append({x.dtype for x in jax.tree.leaves((params, batch))})
        return mean_squared_error(params, batch)

    step = aj.train_step(loss, compute_dtype=jnp.bfloat16)
    state, metrics = run(step, aj.TrainState.create(PARAMS, aj.adam(0.01)), [BATCH] * 5)
    assert seen[0] == {jnp.dtype(jnp.bfloat16)}
    assert metrics[0]["loss"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    params, _, _ = by_hand(aj.adam(0.01), mean_squared_error, PARAMS, [BATCH] * 5)
    assert_close(state.params, params, 0.05)


def test_parameters_in_bfloat16_learn_with_stochastic_rounding():
    def loss(params, batch):
        return jnp.sum(params * batch)

    start, ones = jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)
    for rounding, expected in (("nearest", 1.0), ("stochastic", 0.9)):
        state = aj.TrainState.create(start, aj.sgd(1e-3))
        state, _ = run(aj.train_step(loss, rounding=rounding), state, [ones] * 100)
        assert float(state.params.astype(jnp.float32).mean()) == pytest.approx(expected, abs=2e-3)


def test_metrics():
    from adaptive_jax.training import METRICS

    schedule = optax.linear_schedule(0.1, 0.0, 10)
    step = aj.train_step(mean_squared_error, metrics=METRICS)
    state = aj.TrainState.create(PARAMS, aj.sgd(schedule))
    for count in range(3):
        params = jax.tree.map(np.asarray, state.params)
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, BATCH)
        state, metrics = step(state, BATCH)
        assert set(metrics) == set(METRICS)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradients)))
        size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params)))
        rate = 0.1 * (1 - count / 10)
        expected = {
            "loss": loss,
            "learning_rate": rate,
            "skipped": 0,
            "gradient_norm": norm,
            "update_norm": rate * norm,
            "parameter_norm": size,
            "update_ratio": rate * norm / size,
        }
        assert_close(metrics, expected, 1e-5)


RAMP = optax.linear_schedule(0.1, 0.0, 2)
PLATEAU = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, atol=10.0)


@pytest.mark.parametrize(
    ("tx", "rates"),
    [
        (aj.chain(optax.identity(), aj.adam(0.1)), [0.1, 0.1]),
        (aj.skip_nonfinite(aj.adam(RAMP)), [0.1, 0.05]),
        (aj.compensate(aj.multi_steps(aj.sgd(RAMP), 2)), [0.1, 0.1]),
        (aj.diagnose(aj.sgd(RAMP), ("cosine",)), [0.1, 0.05]),
        (aj.interop.torch.adagrad(0.1, lr_decay=1.0), [0.1, 0.05]),
        (aj.interop.keras.sgd(0.1, momentum=0.9, weight_decay=0.1), [0.1, 0.1]),
        (aj.chain(aj.adam(RAMP), aj.scale_by_learning_rate(0.01, flip_sign=False)), [1e-3, 5e-4]),
        (aj.chain(optax.clip(1.0), optax.add_decayed_weights(0.1, True), aj.sgd(0.1)), [0.1, 0.1]),
        (optax.inject_hyperparams(aj.adam)(learning_rate=RAMP), [0.1, 0.05]),
        (aj.multi_steps(optax.inject_hyperparams(aj.sgd)(RAMP), 1), [0.1, 0.05]),
        (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.1)), [0.1, 0.1]),
        (aj.chain(aj.sgd(0.1), PLATEAU), [0.1, 0.05]),
    ],
    ids=range(12),
)
def test_the_learning_rate_in_force(tx, rates):
    step = aj.train_step(mean_squared_error, metrics=("learning_rate",))
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 2)
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], rates, rtol=1e-6)


def test_the_learning_rate_of_a_step_that_is_skipped():
    tx = optax.inject_hyperparams(optax.sgd)(RAMP)
    step = aj.train_step(lambda p, b: jnp.sum(p * b), skip_nonfinite=True)
    _, metrics = run(step, aj.TrainState.create(jnp.ones(2), tx), [1.0, jnp.nan, 1.0])
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [0.1, 0.05, 0.05])


@pytest.mark.parametrize(
    "tx",
    [
        aj.scale_by_adam(),
        optax.adam(0.1),
        optax.sgd(RAMP),
        optax.masked(aj.adam(RAMP), {"hidden": True, "bias": False, "output": True}),
        optax.partition({"a": optax.inject_hyperparams(aj.sgd)(0.1), "b": aj.sgd(0.2)}, "a"),
        aj.chain(aj.sgd(0.1), optax.scale(0.5)),
        optax.chain(optax.sgd(0.1), PLATEAU),
        aj.chain(aj.sgd(0.1), optax.scale_by_schedule(lambda count: 0.5)),
    ],
    ids=range(8),
)
def test_a_learning_rate_that_cannot_be_known(tx):
    """Named, it is an error and loses nothing; else one warning, whatever compiles again."""
    state = aj.TrainState.create(PARAMS, tx)
    with jax.numpy_dtype_promotion("standard"):
        named = aj.train_step(mean_squared_error, metrics=("learning_rate", "loss"))
        with pytest.raises(
            ValueError, match=r"names 'learning_rate', and none is known of .*inject"
        ):
            named(state, BATCH)
        step = aj.train_step(mean_squared_error)
        with pytest.warns(UserWarning, match="metric 'learning_rate' is left out: none") as caught:
            state, metrics = step(state, BATCH)
        assert len(caught) == 1
        assert set(metrics) == {"loss", "skipped"}
        half = jax.tree.map(lambda x: x[:8], BATCH)
        state, _ = step(state, half)
        _, metrics = aj.train_step(mean_squared_error, metrics=("loss", "skipped"))(state, BATCH)
    assert set(metrics) == {"loss", "skipped"}


TARGET = jnp.array([1 + 2j, 3 - 1j])


@pytest.mark.parametrize(
    ("tx", "settings", "tolerance"),
    [
        (aj.sgd(0.1), {}, 1e-12),
        (aj.adam(0.1), {}, 1e-7),
        (aj.sgd(0.1), {"accumulate": 2}, 1e-12),
        (aj.sgd(0.1), {"loss_scale": 1024.0, "skip_nonfinite": True}, 1e-12),
        (aj.multi_steps(aj.sgd(0.2), 2), {}, 1e-12),
        (optax.sgd(0.1), {}, 1e-12),
    ],
    ids=range(6),
)
def test_complex_parameters_descend(tx, settings, tolerance):
    """JAX's gradient is the conjugate of the direction of steepest ascent."""

    def loss(params, batch):
        return jnp.sum(jnp.square(jnp.abs(params["z"] - TARGET))) * jnp.mean(batch)

    params = {"z": jnp.zeros(2, jnp.complex64)}
    step = aj.train_step(loss, metrics=("loss",), **settings)
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = run(step, aj.TrainState.create(params, tx), [jnp.ones(2)] * 200)
    assert metrics[-1]["loss"] <= tolerance
    np.testing.assert_allclose(state.params["z"], TARGET, rtol=1e-3)


def test_complex_and_real_parameters_together():
    def loss(params, batch):
        with jax.numpy_dtype_promotion("standard"):
            error = params["z"] * params["a"] - TARGET * jnp.mean(batch)
        return jnp.sum(jnp.square(jnp.abs(error)))

    params = {"z": jnp.full(2, 0.5 + 0.5j, jnp.complex64), "a": jnp.ones(2)}
    scale = aj.LossScale(1024.0)
    state = aj.TrainState.create(params, aj.sgd(0.05), loss_scale=scale)
    step = aj.train_step(loss, accumulate=2, metrics=("loss", "gradient_norm"))
    state, metrics = run(step, state, [jnp.ones(4)] * 300)
    assert metrics[-1]["loss"] < 1e-10

    def of_pairs(pairs, batch):  # The same in real numbers.
        return loss({"z": jax.lax.complex(*pairs["z"]), "a": pairs["a"]}, batch)

    pairs = {"z": (jnp.full(2, 0.5), jnp.full(2, 0.5)), "a": jnp.ones(2)}
    real, _ = run(
        aj.train_step(of_pairs, accumulate=2),
        aj.TrainState.create(pairs, aj.sgd(0.05)),
        [jnp.ones(4)] * 300,
    )
    np.testing.assert_allclose(jnp.real(state.params["z"]), real.params["z"][0], rtol=1e-4)
    np.testing.assert_allclose(jnp.imag(state.params["z"]), real.params["z"][1], rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "plateau",
        "optax's chain",
        "polyak",
        "momo",
        pytest.param("lbfgs", marks=pytest.mark.slow),
        pytest.param("nested", marks=pytest.mark.slow),
    ],
)
def test_optimizers_that_look_at_the_loss(name):
    """As in the loop that optax documents."""
    tx = {
        "plateau": aj.chain(aj.adam(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        "optax's chain": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        "polyak": optax.polyak_sgd(1.0),
        "lbfgs": optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5)),
        "momo": optax.contrib.momo(0.1),
        "nested": aj.skip_nonfinite(
            aj.diagnose(aj.multi_steps(aj.chain(optax.lbfgs(), aj.clip(1.0)), 1))
        ),
    }[name]
    loss = lambda params: mean_squared_error(params, BATCH)  # noqa: E731

    @jax.jit
    def by_hand(params, opt_state):
        value, gradients = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": gradients, "value_fn": loss}
        updates, opt_state = tx.update(gradients, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        params, opt_state = PARAMS, tx.init(PARAMS)
        for _ in range(5):
            params, opt_state = by_hand(params, opt_state)
        parts = 4 if name in ("polyak", "lbfgs") else 1
        step = aj.train_step(mean_squared_error, metrics=("loss",), accumulate=parts)
        state = aj.TrainState.create(PARAMS, tx)
        state = state.replace(opt_state=jax.tree.map(jnp.copy, state.opt_state))
        state, _ = run(step, state, [BATCH] * 5)
    assert_close(state.params, params, 1e-5 if parts == 1 else 1e-3)
    assert loss(state.params) < loss(PARAMS)


def test_extra_arguments_are_those_of_optax():
    """The unscaled loss of the whole batch; a member gets what it takes, by name or at all."""
    seen = {}

    def init(params):
        return optax.EmptyState()

    def takes_all(updates, state, params=None, **extra):
        seen["all"] = extra
        value = extra["value_fn"](jax.tree.map(lambda x: x + 1, params))
        assert extra["grad"] is not updates  # A chain has changed them.
        return jax.tree.map(
            lambda u, g: 0 * u + value + extra["value"] * g, updates, extra["grad"]
        ), state

    def takes_one(updates, state, params=None, *, value):
        seen["one"] = value
        return updates, state

    def takes_none(updates, state, params=None):
        return updates, state

    extra, plain = optax.GradientTransformationExtraArgs, optax.GradientTransformation
    members = [extra(init, takes_one), plain(init, takes_none), extra(init, takes_all)]
    tx = aj.chain(aj.clip(1e-3), *members)

    def loss(params, batch, rng, model_state):
        return params * jnp.mean(batch), model_state + 1

    step = aj.train_step(loss, accumulate=2, loss_scale=8.0)
    state = aj.TrainState.create(
        jnp.array(2.0), tx, rng=jax.random.key(0), model_state=jnp.zeros(())
    )
    with pytest.warns(UserWarning, match="'learning_rate' is left out"):
        state, metrics = step(state, jnp.arange(4.0))
    assert set(seen["all"]) == {"value", "grad", "value_fn"}
    assert "one" in seen
    assert metrics["loss"] == 3.0
    assert state.model_state == 2.0
    # The loss at θ + 1, and the loss times its gradient.
    assert state.params == 2.0 + 4.5 + 3.0 * 1.5


COARSE = [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz, jnp.float4_e2m1fn]


@pytest.mark.parametrize("dtype", COARSE, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"loss_scale": 4.0}], ids=str)
def test_parameters_of_few_bits_learn(dtype, settings):
    """On average as in float32, however small the update is."""
    params = {"w": jnp.full(20_000, 1.0, dtype), "v": jnp.full(20_000, -3.0, dtype)}

    def loss(params, batch):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in params.values()) * jnp.mean(batch)

    step = aj.train_step(loss, **settings)
    for tx, each in ((aj.sgd(5e-4), 5e-4), (aj.adam(1e-3), 1e-3)):
        state, _ = run(step, aj.TrainState.create(params, tx), [jnp.ones(2)] * 20)
        for name, start in (("w", 1.0), ("v", -3.0)):
            assert state.params[name].dtype == dtype
            moved = start - state.params[name].astype(jnp.float32).mean()
            assert float(moved) == pytest.approx(20 * each, abs=0.006)


def test_parameters_of_16_bits_have_gradients_of_their_own():
    for dtype in (jnp.bfloat16, jnp.float16):
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), PARAMS)

        def loss(params, batch, dtype=dtype):
            return mean_squared_error(params, jax.tree.map(lambda x: x.astype(dtype), batch))

        @jax.jit
        def by_hand(tx, params, opt_state, step, loss=loss):
            gradients = jax.grad(loss)(params, BATCH)
            updates, opt_state = tx.update(gradients, opt_state, params)
            return aj.apply_updates(params, updates, rounding="stochastic", step=step), opt_state

        tx = aj.adam(0.01)
        state, _ = run(aj.train_step(loss), aj.TrainState.create(params, tx), [BATCH] * 3)
        opt_state = tx.init(params)
        for step in range(3):
            params, opt_state = by_hand(tx, params, opt_state, jnp.int32(step))
        jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_the_ratio_of_update_and_parameter_is_that_of_diagnose():
    """0 where the parameters are: there is nothing to compare with."""

    def loss(params, batch):
        return jnp.sum(params * batch)

    tx = aj.diagnose(aj.sgd(0.1), ("update_ratio",), group_by=lambda path: "all")
    step = aj.train_step(loss, metrics=("update_ratio",))
    for start in (0.0, 1e-30, 3.0):
        state, metrics = step(aj.TrainState.create(jnp.full(4, start), tx), jnp.ones(4))
        assert metrics["update_ratio"] == state.opt_state.measured["update_ratio"]["all"]
        assert np.isfinite(metrics["update_ratio"])
        assert start or metrics["update_ratio"] == 0


def test_the_number_of_steps_wraps_round():
    """Where it stopped, all further steps would draw the same numbers and round the same way."""

    def loss(params, batch, rng):
        return jnp.sum(params.astype(jnp.float32)) * batch, jax.random.uniform(rng)

    tx, step = aj.sgd(1e-3), aj.train_step(loss, has_aux=True)
    params = jnp.ones(1000, jnp.bfloat16)
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0))
    state = state.replace(step=jnp.int32(2**31 - 2))
    state, metrics = run(step, state, [jnp.ones(())] * 100)
    assert len({float(each["aux"]) for each in metrics}) == 100
    assert float(state.params.astype(jnp.float32).mean()) == pytest.approx(0.9, abs=2e-3)


def test_a_vmapped_state_is_a_sweep():
    rates = jnp.array([0.001, 0.01, 0.1])
    states = jax.vmap(lambda rate: aj.TrainState.create(PARAMS, aj.adam(rate)))(rates)
    step = aj.train_step(mean_squared_error)
    many = jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
    for _ in range(3):
        states, metrics = many(states, BATCH)
    assert metrics["loss"].shape == (3,)
    for index, rate in enumerate(rates):
        params, _, _ = by_hand(aj.adam(float(rate)), mean_squared_error, PARAMS, [BATCH] * 3)
        assert_close(jax.tree.map(lambda x, i=index: x[i], states.params), params, 1e-4)
    # Nothing of the trace stays in the step.
    state, _ = step(aj.TrainState.create(PARAMS, aj.adam(0.1)), BATCH)
    assert np.isfinite(state.params["bias"]).all()


WIDE = {
    "hidden": jnp.asarray(rng.normal(size=(8, 16)) / 3, jnp.float32),
    "bias": jnp.zeros((1, 16)),
    "output": jnp.asarray(rng.normal(size=(16, 1)) / 4, jnp.float32),
}
WIDE_BATCH = {
    "inputs": jnp.asarray(rng.normal(size=(32, 8)), jnp.float32),
    "targets": jnp.ones((32, 1)),
}
PLACEMENTS = {
    "replicated": {"hidden": (), "bias": (), "output": ()},
    "sharded like FSDP": {"hidden": ("data",), "bias": (None, "data"), "output": ("data",)},
}


def on_eight_devices(placement, mesh):
    if "sharded" in placement and jax.sharding.AxisType.Explicit in mesh.axis_types:
        pytest.skip(
            "On an explicit mesh the network itself must say where its weights are gathered."
        )
    shardings = {
        name: NamedSharding(mesh, PartitionSpec(*axes))
        for name, axes in PLACEMENTS[placement].items()
    }
    params = jax.device_put(WIDE, shardings)
    return shardings, params, jax.device_put(WIDE_BATCH, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_data_parallel(placement, parts, make_mesh):
    """As on one device; the optimizer's state lies where its parameters do, and stays there."""
    shardings, params, batch = on_eight_devices(placement, make_mesh(8, "data"))
    step = aj.train_step(mean_squared_error, accumulate=parts)
    alone, _ = run(
        aj.train_step(mean_squared_error),
        aj.TrainState.create(WIDE, aj.adam(0.01)),
        [WIDE_BATCH] * 3,
    )
    state = aj.TrainState.create(params, aj.adam(0.01))
    for tree in (state.params, state.opt_state[0].mu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    state, _ = run(step, state, [batch] * 3)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    assert_close(state.params, alone.params)
    assert step._jitted._cache_size() == 1


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_with_fewer_rows_than_devices(parts, make_mesh):
    mesh = make_mesh(4, "data")
    batch = jnp.arange(64.0).reshape(8, 8) / 64
    step = aj.train_step(lambda w, rows: jnp.mean((rows @ w) ** 2), accumulate=parts)
    results = []
    for spec, place in ((None, None), ((), ("data",))):
        params, given = jnp.ones((8, 16)), batch
        if spec is not None:
            params = jax.device_put(params, NamedSharding(mesh, PartitionSpec(*spec)))
            given = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*place)))
        state, metrics = step(aj.TrainState.create(params, aj.sgd(0.1)), given)
        results.append((state.params, metrics["loss"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *results)


@jax.numpy_dtype_promotion("standard")  # For optax.
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_communication_beside_that_of_the_gradient(placement, make_mesh):
    """The optimizer, the scalars and the loss add none to the step written by hand."""
    _, params, batch = on_eight_devices(placement, make_mesh(8, "data"))
    tx = optax.adam(0.01)

    def by_hand(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def communication(lowered):
        operations = (
            "all-reduce",
            "all-gather",
            "reduce-scatter",
            "all-to-all",
            "collective-permute",
        )
        text = lowered.compile().as_text()
        return {
            name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in operations
        }

    theirs = jax.jit(by_hand, donate_argnums=(0, 1)).lower(params, tx.init(params), batch)
    state = aj.TrainState.create(params, aj.adam(0.01))
    ours = aj.train_step(mean_squared_error).lower(state, batch)
    assert communication(ours) == communication(theirs)
    assert sum(communication(ours).values()) > 0


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (
            lambda p, b: network(p, b["inputs"]),
            {},
            r"the loss is float32\[16, 1\].*one real number",
        ),
        (lambda p, b: (mean_squared_error(p, b), 1), {}, "a tuple of 2 for the loss.*has_aux=True"),
        (mean_squared_error, {"has_aux": True}, "must return loss, aux.*has_aux=True"),
        (
            mean_squared_error,
            {"accumulate": 3},
            r"batch\['inputs'\] is float32\[16, 5\].*accumulate=3",
        ),
        (lambda p, b: None, {}, "returned None for the loss. Is its return missing"),
        (
            lambda p, b: mean_squared_error(p, {**b, "inputs": b["inputs"][:8]}),
            {"accumulate": 2, "batch": {**BATCH, "inputs": BATCH["inputs"][:8]}},
            r"in common: batch\['inputs'\] is float32\[8, 5\], batch\['targets'\] is float32\[16",
        ),
        (
            lambda p, b, model_state: (mean_squared_error(p, b), {"a": jnp.ones(2)}),
            {},
            r"new model state differs from the model state at \['a'\]",
        ),
    ],
    ids=["vector", "aux", "no aux", "split", "none", "lengths", "model state"],
)
def test_a_mistake_is_named_and_loses_nothing(loss, settings, message):
    state = aj.TrainState.create(PARAMS, aj.adam(0.01), model_state={"a": jnp.ones(3)})
    batch = settings.get("batch", BATCH)
    settings = {name: value for name, value in settings.items() if name != "batch"}
    with pytest.raises((TypeError, ValueError), match=message):
        aj.train_step(loss, **settings)(state, batch)
    state, _ = aj.train_step(mean_squared_error)(state, BATCH)
    assert state.step == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: aj.train_step(mean_squared_error, metrics=("norm",)),
            "metrics='norm' is not known",
        ),
        (lambda: aj.train_step(mean_squared_error, metrics="loss"), "is a string"),
        (lambda: aj.train_step(mean_squared_error, rounding="up"), "rounding='up'"),
        (lambda: aj.train_step(mean_squared_error, accumulate=0), "accumulate=0"),
        (lambda: aj.train_step(3), "loss_fn=3"),
        (lambda: aj.train_step(mean_squared_error, loss_scale=0.0), "loss_scale=0.0"),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(-1.0)),
            "scale=-1.0",
        ),
        (
            lambda: aj.train_step(mean_squared_error, loss_scale=np.float32(-1.0)),
            r"loss_scale=np.float32\(-1.0\) must be",
        ),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(factor=1.0)),
            "factor=1.0 in .* must be above 1",
        ),
        (lambda: aj.train_step(mean_squared_error)(PARAMS, BATCH), "takes a TrainState, got"),
        (lambda: aj.TrainState.create({"w": jnp.arange(3)}, aj.sgd(1.0)), r"\['w'\] is int32\[3\]"),
        (lambda: aj.TrainState.create(PARAMS, 0.1), "takes optax gradient transformations"),
        (lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), rng=0), "rng=0 is no random key"),
        (lambda: aj.fit(aj.train_step(mean_squared_error), create(), [BATCH]), r"call fit\(state,"),
        (lambda: aj.fit(create(), aj.train_step(mean_squared_error), 3), "batches=3 must be an it"),
    ],
    ids=range(15),
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def create():
    return aj.TrainState.create(PARAMS, aj.adam(0.01))


def test_fit():
    step = aj.train_step(mean_squared_error)
    expected, metrics = run(step, create(), [BATCH] * 70)
    state, history = aj.fit(create(), step, [BATCH] * 70)
    assert_close(state.params, expected.params, 0)
    assert type(history["loss"]) is np.ndarray
    np.testing.assert_array_equal(history["loss"], [m["loss"] for m in metrics])
    state, history = aj.fit(state, step, iter([BATCH] * 70), steps=3)
    assert (state.step, history["loss"].shape) == (73, (3,))
    state, history = aj.fit(state, step, [])
    assert history == {}


FIT_STEP = aj.train_step(mean_squared_error)


@pytest.mark.parametrize(
    "answer", [bool, np.bool_, np.array, jnp.array], ids=["python", "numpy", "array", "jax"]
)
def test_fit_ends_when_the_callback_says_so(answer):
    seen = []

    def callback(state, metrics):
        seen.append(int(state.step))
        return None if len(seen) == 1 else answer(len(seen) == 3)

    state, history = aj.fit(create(), FIT_STEP, [BATCH] * 9, callback=callback)
    assert (seen, len(history["loss"]), state.step) == ([1, 2, 3], 3, 3)
    assert not history.interrupted


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda state: 1, r"returned int32\[\]: it must return True to stop the loop"),
        (lambda state: "stop", "returned a str"),
        (lambda state: np.array([True]), r"returned bool\[1\]"),
        (lambda state: state.step, r"returned int32\[\]"),
        (lambda state: {}, "returned a dict"),
        (lambda state: state, r"returned a TrainState.*return change\(state\), metrics"),
        (lambda state: (state, {}), "returned a TrainState"),
    ],
    ids=["one", "text", "vector", "number", "dict", "state", "pair"],
)
def test_a_callback_that_answers_something_else(answer, message):
    with pytest.raises(TypeError, match=message) as caught:
        aj.fit(create(), FIT_STEP, [BATCH] * 9, callback=lambda state, metrics: answer(state))
    assert caught.value.state.step == 1
    state, _ = FIT_STEP(caught.value.state, BATCH)
    assert state.step == 2


def test_a_step_around_the_step_changes_the_state():
    """As an error about a callback says."""

    def changing(state, batch):
        state, metrics = FIT_STEP(state, batch)
        return state.replace(params=jax.tree.map(jnp.zeros_like, state.params)), metrics

    state, history = aj.fit(create(), changing, [BATCH] * 3)
    assert not np.any(state.params["hidden"])
    assert len(history["loss"]) == 3


def test_an_interrupt_returns_what_was_reached():
    usual = signal.getsignal(signal.SIGINT)

    def callback(state, metrics):
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)

    state, history = aj.fit(create(), FIT_STEP, [BATCH] * 9, callback=callback)
    assert (state.step, len(history["loss"])) == (3, 3)
    assert history.interrupted
    assert signal.getsignal(signal.SIGINT) is usual
    state, history = aj.fit(state, FIT_STEP, [BATCH] * 2)
    assert not history.interrupted


def press(times):
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def failing(what):
    """Two batches, and then something that ends the loop from outside."""
    yield BATCH
    yield BATCH
    what()
    yield BATCH


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (KeyboardInterrupt, lambda: press(2)),
        (SystemExit, lambda: sys.exit(3)),
        (OSError, lambda: raise_(OSError("the file ends here"))),
        (GeneratorExit, lambda: raise_(GeneratorExit())),
    ],
    ids=["two Ctrl-C", "sys.exit", "error", "other"],
)
@pytest.mark.parametrize("where", ["batches", "callback"])
def test_whatever_ends_the_loop_brings_state_and_history_along(kind, what, where):
    usual = signal.getsignal(signal.SIGINT)

    def callback(state, metrics):
        if state.step == 2:
            what()

    in_batches = where == "batches"
    batches = failing(what) if in_batches else [BATCH] * 3
    with pytest.raises(kind) as caught:
        aj.fit(create(), FIT_STEP, batches, callback=None if in_batches else callback)
    assert signal.getsignal(signal.SIGINT) is usual
    error = caught.value
    assert (error.state.step, error.history["loss"].shape) == (2, (2,))
    assert error.history.interrupted == (kind is KeyboardInterrupt)
    assert "after 2 steps, is error.state" in error.__notes__[0]
    state, _ = aj.fit(error.state, FIT_STEP, [BATCH])
    expected, metrics = run(FIT_STEP, create(), [BATCH] * 3)
    assert_close(state.params, expected.params, 0)
    np.testing.assert_array_equal(error.history["loss"], [m["loss"] for m in metrics[:2]])


@pytest.mark.parametrize("times", [2, 3])
def test_a_second_interrupt_waits_for_the_end_of_a_step_and_a_third_does_not(times):
    ended = []

    def step(state, batch):
        state, metrics = FIT_STEP(state, batch)
        if len(ended) == 1:
            press(times)
        ended.append(True)
        return state, metrics

    with pytest.raises(KeyboardInterrupt) as caught:
        aj.fit(create(), step, [BATCH] * 9)
    if times == 2:
        assert (caught.value.state.step, len(ended)) == (2, 2)
    else:  # The step had taken the state over, and has not given the new one back.
        assert caught.value.state is None
        assert "The state is lost, after 1 steps" in caught.value.__notes__[0]
    assert caught.value.history["loss"].shape == (4 - times,)


def test_a_step_that_fails_has_used_the_state_up(tmp_path):
    """A failure of the runtime, at once or late: here an error in a host callback."""

    def broken(weight):
        if weight < 0.75:
            raise OSError("the disk is full, and a file was deleted")
        return np.float32(0)

    def loss(params, batch):
        seen = jax.pure_callback(
            broken, jax.ShapeDtypeStruct((), jnp.float32), jax.lax.stop_gradient(params["w"])
        )
        return params["w"] * (1 + seen)

    for metrics in (("loss",), ()):
        state = aj.TrainState.create({"w": jnp.ones(())}, aj.sgd(0.1))
        with pytest.raises(Exception, match="disk is full") as caught:
            aj.fit(state, aj.train_step(loss, metrics=metrics), [0.0] * 5)
        error = caught.value
        assert error.state is None
        assert "The state is lost" in error.__notes__[0]
        assert len(error.history.get("loss", ())) <= 3
    pytest.importorskip("orbax.checkpoint")
    state = aj.TrainState.create({"w": jnp.ones(())}, aj.sgd(0.1))
    aj.save_checkpoint(tmp_path, state)
    with pytest.raises(Exception, match="disk is full") as caught:
        aj.fit(state, aj.train_step(loss), [0.0] * 5)
    assert f"Go on from the last checkpoint, {tmp_path / '0'}." in caught.value.__notes__[0]


def test_an_error_in_the_loop_brings_the_state_along():
    with pytest.raises(ValueError, match="ended after 2 of 5 steps"):
        aj.fit(create(), aj.train_step(mean_squared_error), [BATCH] * 2, steps=5)
    with pytest.raises(ValueError, match="steps=-1"):
        aj.fit(create(), aj.train_step(mean_squared_error), [BATCH], steps=-1)


def test_fit_shows_a_bar(capsys):
    aj.fit(create(), FIT_STEP, [BATCH] * 70, progress=True)
    assert "70step" in capsys.readouterr().err.replace(" ", "")


def test_the_history_keeps_less_than_a_hundred_bytes_per_step():
    """For three metrics: their numbers, and nothing of a device."""
    seen = []

    def callback(state, metrics):
        if state.step % 1000 == 0:
            seen.append((tracemalloc.get_traced_memory()[0], len(jax.live_arrays())))

    tracemalloc.start()
    try:
        state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
        step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
        _, history = aj.fit(state, step, itertools.repeat(1.0), steps=3000, callback=callback)
    finally:
        tracemalloc.stop()
    (before, arrays), _, (after, arrays_after) = seen
    assert (after - before) / 2000 < 100
    assert abs(arrays_after - arrays) < 100
    assert {name: values.shape for name, values in history.items()} == dict.fromkeys(
        ("loss", "learning_rate", "skipped"), (3000,)
    )
    assert all(values.base is None for values in history.values())


def test_metrics_of_any_kind():
    """Vectors, trees, numbers of Python, None, and what has another shape in every step."""

    def step(state, batch):
        return state + 1, {
            "loss": jnp.full(3, state),
            "aux": {"batch": jnp.zeros((batch, 2)), "none": None},
            "number": float(state),
            "name": "a" * state,
        }

    state, history = aj.fit(0, step, [2 + (i % 50 == 0) for i in range(100)])
    assert state == 100
    np.testing.assert_array_equal(history["loss"], np.arange(100)[:, None] * np.ones((1, 3)))
    np.testing.assert_array_equal(history["number"], np.arange(100.0))
    assert history["aux"]["none"] is None
    assert [x.shape for x in history["aux"]["batch"][:2]] == [(3, 2), (2, 2)]
    assert (history["aux"]["batch"].shape, history["name"][3]) == ((100,), "aaa")
    assert history["loss"].dtype == np.int32
    tree = jax.tree.map(len, history)
    assert isinstance(tree, type(history))
    assert tree["number"] == 100
    assert pickle.loads(pickle.dumps(history)).interrupted is False


def test_metrics_that_cannot_be_kept():
    def sharing(state, batch):
        state, metrics = FIT_STEP(state, batch)
        return state, {**metrics, "step": state.step}

    def changing(state, batch):
        state, metrics = FIT_STEP(state, batch)
        return state, metrics if batch is BATCH else {"loss": metrics["loss"]}

    with pytest.raises(
        ValueError, match=r"metrics\['step'\] is an array of the state.*jnp.copy"
    ) as c:
        aj.fit(create(), sharing, [BATCH] * 9)
    assert c.value.state.step == 9
    with pytest.raises(ValueError, match=r"\['skipped'\].*must be the same in every step") as c:
        aj.fit(create(), changing, [BATCH] * 40 + [{**BATCH}] * 2)
    assert (c.value.state.step, len(c.value.history["loss"])) == (42, 32)

    def copying(state, batch):
        state, metrics = FIT_STEP(state, batch)
        return state, {**metrics, "step": jnp.copy(state.step)}

    _, history = aj.fit(create(), copying, [BATCH] * 40)
    np.testing.assert_array_equal(history["step"], np.arange(1, 41))


def by_name(params, batch):
    return jnp.sum(params["hidden"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: aj.fit(s, by_name, [BATCH]),
            r"step=by_name .*object is not subs.*aj.train_step\(",
        ),
        (
            lambda s: aj.fit(s, lambda p, b: jnp.sum(p), [BATCH]),
            r"failed: .*aj.train_step\(loss_fn\)",
        ),
        (lambda s: aj.fit(s, lambda p, b: p.w.sum(), [BATCH]), "no attribute 'w'.*aj.train_step"),
        (
            lambda s: aj.fit(s, lambda p, b: jnp.ones(()), [BATCH]),
            r"returned float32\[\]\. It must",
        ),
        (lambda s: aj.fit(s, lambda p, b: (1.0, {}), [BATCH]), r"returned \(float32\[\], a dict\)"),
        (lambda s: aj.fit(s, lambda s, b: s, [BATCH]), "returned a TrainState. It must return"),
        (lambda s: aj.fit(s, lambda s, b: (s, 1.0), [BATCH]), r"\(a TrainState, float32\[\]\)"),
        (lambda s: aj.fit(FIT_STEP, s, [BATCH]), r"wrong order: call fit\(state, step, batches\)"),
        (lambda s: aj.fit(FIT_STEP, by_name, [BATCH]), "wrong order"),
        (
            lambda s: aj.fit(s, FIT_STEP, BATCH),
            "batches is a dict, which is one batch: give a list",
        ),
        (lambda s: aj.fit(s, FIT_STEP, "train.npz"), "batches is a str"),
        (lambda s: aj.fit(s, FIT_STEP, [BATCH], callback=3), "callback=3 must be a function"),
    ],
    ids=range(12),
)
def test_what_fit_cannot_take(call, message):
    state = create()
    with pytest.raises(TypeError, match=message):
        call(state)
    assert FIT_STEP(state, BATCH)[0].step == 1


def test_an_error_of_a_step_is_not_taken_for_that_of_a_loss():
    def step(state, batch):
        raise ValueError("TrainState.create has no rng")

    with pytest.raises(ValueError, match="has no rng"):
        aj.fit(create(), step, [BATCH])
    state = create()
    FIT_STEP(state, BATCH)
    with pytest.raises(ValueError, match="used up by a step before") as caught:
        aj.fit(state, FIT_STEP, [BATCH])
    assert caught.value.state is None
    assert not hasattr(caught.value, "__notes__")


def test_a_state_is_a_pytree():
    state = create()
    leaves, treedef = jax.tree.flatten(state)
    again = treedef.unflatten(leaves)
    assert isinstance(again, aj.TrainState)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(state).keys()
    assert len(leaves) == len(set(map(id, leaves)))


def test_a_state_that_was_used_up_says_so():
    state = aj.TrainState.create(jnp.ones(3), aj.sgd(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    step(state, 1.0)
    with pytest.raises(ValueError, match=r"used up by a step before.*the state that it returned"):
        step(state, 1.0)


def test_a_loss_of_three_arguments_is_told_about_batches():
    with pytest.raises(TypeError, match=r"params, x, y.*unpack it inside, x, y = batch"):
        aj.train_step(lambda params, x, y: 0.0)
    aj.train_step(lambda params, batch, rng, model_state, *, more=1: 0.0)
    aj.train_step(lambda params, batch, scale=1.0: 0.0)


def test_an_optimizer_that_was_not_called():
    with pytest.raises(TypeError, match=r"Call it: adam\("):
        aj.TrainState.create(jnp.ones(3), aj.adam)


def test_a_state_shows_shapes_and_its_optimizer():
    state = aj.TrainState.create({"w": jnp.ones((2, 3))}, aj.sgd(0.1), rng=jax.random.key(0))
    shown = "TrainState(step=int32[], params={'w': float32[2, 3]}, "
    shown += "opt_state=(EmptyState(), EmptyState()), "
    assert repr(state).startswith(shown + "tx=sgd(learning_rate=0.1), rng=key<fry>[]")
    assert repr(jax.tree.map(lambda x: None, state)).startswith("TrainState(")


def test_a_compiled_step_is_called_like_the_step():
    step = aj.train_step(mean_squared_error)
    expected, metrics = run(step, create(), [BATCH] * 2)
    lowered = step.lower(create(), BATCH)
    compiled = lowered.compile()
    state, got = run(compiled, create(), [BATCH] * 2)
    jax.tree.map(np.testing.assert_array_equal, (state.params, got), (expected.params, metrics))
    assert compiled.memory_analysis().temp_size_in_bytes >= 0
    assert "tanh" in lowered.as_text()
    assert "tanh" in compiled.as_text()
    # A new rate is data, another optimizer is not.
    slower, _ = compiled(create().replace(tx=aj.adam(1e-3)), BATCH)
    assert repr(slower.tx).startswith("adam(learning_rate=0.001")
    with pytest.raises(
        TypeError, match=r"compiled for another optimizer than adamw\(.*compile it again"
    ):
        compiled(create().replace(tx=aj.adamw(1e-3)), BATCH)
    used = create()
    compiled(used, BATCH)
    with pytest.raises(ValueError, match="used up by a step before"):
        compiled(used, BATCH)


def test_pickle_of_a_step_says_what_to_do():
    step = aj.train_step(mean_squared_error)
    with pytest.raises(
        TypeError, match=r"mean_squared_error is compiled.*make it again with train_st"
    ):
        pickle.dumps(step)
    assert copy.deepcopy({"step": step})["step"] is step
    state, _ = step(create(), BATCH)
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    expected, _ = step(state, BATCH)
    state, _ = step(again, BATCH)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


def test_nothing_goes_to_the_device_unasked():
    step = aj.train_step(mean_squared_error)
    state, _ = step(create(), BATCH)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, BATCH)
        state, metrics = step(state.replace(tx=aj.adam(1e-3)), BATCH)
        state, metrics = step(state, BATCH)
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3)


def test_an_optimizer_on_the_device_is_not_sent_again():
    @jax.jit
    def step(tx, params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    tx = aj.adam(0.1)
    state = tx.init(PARAMS)
    expected = step(tx, PARAMS, state)
    tx = jax.device_put(tx)
    step(tx, PARAMS, state)
    with jax.transfer_guard("disallow"):
        got = step(tx, PARAMS, state)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_step_on_a_mesh_in_force(explicit):
    """The optimizer's numbers go where the mesh is, and back to one device with the next state."""
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    tx, step = aj.adam(0.1), aj.train_step(lambda p, batch: jnp.sum(jnp.square(p)) * batch)
    alone, expected = run(step, aj.TrainState.create(jnp.ones((8, 4)), tx), [1.0] * 2)
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("data")))
        state, metrics = run(step, aj.TrainState.create(params, tx), [1.0] * 2)
    assert state.params.sharding.is_equivalent_to(params.sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, (state.params, metrics), (alone.params, expected))
    again, _ = step(alone, 1.0)
    state, _ = step(state, 1.0)
    np.testing.assert_array_equal(state.params, again.params)


def test_metrics_outlive_the_state():
    """A number that no step changes is not the state's own array: users may donate that."""
    step = aj.train_step(mean_squared_error)
    state, first = step(create(), BATCH)
    state, second = step(state, BATCH)
    jax.tree.map(lambda x: x.delete(), dataclasses.replace(state, tx=None))
    assert (first["skipped"], second["skipped"]) == (0, 0)


@pytest.mark.parametrize(
    "tx",
    [
        aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.01, mask={"w": True, "b": False})),
        aj.skip_nonfinite(aj.multi_steps(aj.adam(0.01, storage="int8"), 2)),
        aj.compensate(aj.diagnose(aj.adam(0.01, storage={"nu": "factored", "mu": "bfloat16"}))),
        pytest.param(
            aj.chain(aj.monitor({"norm": aj.global_norm}), aj.sgd(0.01, momentum=0.9)),
            marks=pytest.mark.slow,
        ),
        pytest.param(aj.interop.torch.adam(0.01, (0.9, 0.99)), marks=pytest.mark.slow),
    ],
    ids=range(5),
)
def test_a_step_is_exported(tx):
    """The state goes in and comes out as a TrainState, from a file."""

    def loss(params, batch, rng):
        sums = jnp.sum(jnp.square(params["w"]).astype(jnp.float32))
        return sums * jax.random.uniform(rng) * batch

    params = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(3)}
    step = aj.train_step(loss)
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0), loss_scale=aj.LossScale())
    data = jax.export.export(jax.jit(step))(state, jnp.float32(0.1)).serialize()
    expected, metrics = jax.jit(step)(state, jnp.float32(0.1))
    got, again = jax.export.deserialize(data).call(state, jnp.float32(0.1))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert repr(got.tx) == repr(expected.tx)
    got, expected = (each.replace(rng=None) for each in (got, expected))
    assert_close((got, again), (expected, metrics), 0)


def test_what_cannot_be_exported_is_named():
    def local(count):
        return 2

    step = aj.train_step(lambda params, batch: jnp.sum(params), metrics=("loss",))
    for tx, name in (
        (optax.sgd(0.1), "chain of optax"),
        (aj.multi_steps(aj.sgd(0.1), local), "loc"),
    ):
        state = aj.TrainState.create(jnp.ones(3), tx)
        exported = jax.export.export(jax.jit(step))(state, 1.0)
        with pytest.raises(ValueError, match=rf"{name}.* in it cannot be written.*top level"):
            exported.serialize()
        # The way that the error names.
        leaves, treedef = jax.tree.flatten(state)
        leaves = list(map(jnp.asarray, leaves))

        def on_leaves(leaves, treedef=treedef):
            return jax.tree.leaves(step(treedef.unflatten(leaves), 1.0)[0])

        data = jax.export.export(jax.jit(on_leaves))(leaves).serialize()
        new = treedef.unflatten(jax.export.deserialize(data).call(leaves))
        assert_close(new.params, step(state, 1.0)[0].params)


EXPORT = """
import sys, jax, jax.numpy as jnp, optax
if sys.argv[1] == "registered":
    jax.export.register_namedtuple_serialization(optax.ScaleByAdamState, serialized_name="theirs")
    jax.export.register_namedtuple_serialization(optax.EmptyState, serialized_name="empty")
import adaptive_jax as aj
tx, params = aj.adam(0.1, storage="int8"), jnp.ones((64, 128))
state = tx.init(params)
update = jax.jit(lambda tx, params, state: tx.update(params, state, params))
if sys.argv[2] == "write":
    data = jax.export.export(update)(tx, params, state).serialize()
    open(sys.argv[3], "wb").write(data)
else:
    exported = jax.export.deserialize(bytearray(open(sys.argv[3], "rb").read()))
    updates, state = exported.call(tx, params, state)
    assert state[0].count == 1 and state[0].mu.codes.dtype == jnp.int8
"""


@pytest.mark.slow
@pytest.mark.parametrize("registered", ["registered", "new"])
def test_another_process_reads_what_was_exported(registered, tmp_path):
    for what in ("write", "read"):
        arguments = [sys.executable, "-c", EXPORT, registered, what, str(tmp_path / "step")]
        subprocess.run(arguments, check=True)


KEEPING = {
    "prodigy": lambda: optax.contrib.prodigy(),
    "dog": lambda: optax.contrib.dog(),
    "cocob": lambda: optax.contrib.cocob(),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "in a chain": lambda: aj.chain(optax.contrib.dog(), aj.scale_by_learning_rate(0.1)),
    "twice": lambda: optax.GradientTransformation(
        lambda params: (params, params, jnp.zeros(())),
        lambda updates, state, params=None: (updates, (state[0], updates, state[2] + 1)),
    ),
}


@pytest.mark.parametrize(("name", "copy"), [*((name, True) for name in KEEPING), ("twice", False)])
def test_an_optimizer_whose_state_holds_the_parameters(name, copy):
    """A step writes over both: the state has copies."""
    tx, step = KEEPING[name](), aj.train_step(mean_squared_error, metrics=("loss",))
    with jax.numpy_dtype_promotion("standard"):
        params, opt_state, _ = by_hand(tx, mean_squared_error, PARAMS, [BATCH] * 3)
        start = PARAMS if copy else jax.tree.map(jnp.copy, PARAMS)
        state, _ = run(step, aj.TrainState.create(start, tx, copy=copy), [BATCH] * 3)
    assert_close(state.params, params, 1e-5)
    assert_close(state.opt_state, opt_state, 1e-5)
    assert np.isfinite(PARAMS["bias"]).all()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_state_that_holds_sharded_parameters(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(jnp.arange(16.0), sharding)
    tx = KEEPING["twice"]()
    state = aj.TrainState.create(params, tx)
    assert all(x.sharding == sharding for x in state.opt_state[:2])
    step = aj.train_step(lambda params, batch: jnp.sum(params**2), metrics=("loss",))
    state, _ = step(state, 0.0)
    np.testing.assert_array_equal(state.opt_state[0], np.arange(16.0))


def test_a_number_that_an_optimizer_keeps_stays_the_users():
    rate = jnp.array(0.1)
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        for _ in range(2):
            state, _ = FIT_STEP(aj.TrainState.create(PARAMS, tx), BATCH)
    assert rate == state.opt_state.hyperparams["learning_rate"]


def mu_for_nu(state):
    moments, rest = state.opt_state
    return state.replace(opt_state=(moments._replace(mu=moments.nu), rest))


def tied():
    weight = jnp.ones((4, 4))
    return aj.TrainState.create({"embed": weight, "out": weight}, aj.adam(0.1), copy=False)


def weights(params, batch):
    return sum(jnp.sum(x) for x in jax.tree.leaves((params, batch)))


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (
            lambda state: (state.replace(model_state={"ema": state.params}), None),
            r"state.params\['bias'\] and state.model_state\['ema'\]\['bias'\] are one",
        ),
        (
            lambda state: (tied(), None),
            r"\['embed'\] and state.params\['out'\] are .*float32\[4, 4\]",
        ),
        (
            lambda state: (mu_for_nu(state), None),
            r"opt_state\[0\].mu.* and state.opt_state\[0\].nu",
        ),
        (lambda state: (state, [state.params["bias"]]), r"state.params\['bias'\] and batch\[0\]"),
        (
            lambda state: (
                state.replace(model_state=jax.device_put(state.step, jax.devices()[0])),
                None,
            ),
            "state.step and state.model_state are one",
        ),
    ],
    ids=["ema", "tied", "mu for nu", "batch", "another view"],
)
def test_an_array_that_is_in_the_state_twice(make, paths):
    """Named before anything is donated, and mended by the copy that the error asks for."""
    state, batch = make(create())
    step = aj.train_step(weights)
    for _ in range(2):
        with pytest.raises(ValueError, match=paths + r".*jnp.copy.*The state is as it was"):
            step(state, batch)
    arrays = dataclasses.replace(state, tx=None)
    assert not any(x.is_deleted() for x in jax.tree.leaves(arrays))
    state = dataclasses.replace(jax.tree.map(jnp.copy, arrays), tx=state.tx)
    assert step(state, batch)[0].step == 1


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_array_that_is_in_the_state_twice(axis_type):
    """Where XLA would end the process: so it is not asked. Nor is a state that a step has made."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("data")))
    step = aj.train_step(weights)
    state = aj.TrainState.create(params, aj.adam(0.1))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"state\.params and state\.model_state are one array"):
            step(state.replace(model_state=state.params), None)
        with pytest.raises(ValueError, match=r"state\.params and batch are one array"):
            step(state.replace(step=state.step), state.params)
        state, _ = step(state, None)
    rate = jnp.array(0.1)  # The optimizer is only read: it may have an array twice.
    state = state.replace(tx=aj.adam(rate, eps=rate))
    state, _ = step(state.replace(rng=jax.random.key(0)), [rate, rate])
    assert state.step == 3


def test_shapes_in_the_place_of_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    for arguments in ({"params": shapes}, {"params": PARAMS, "model_state": shapes}):
        with pytest.raises(
            TypeError, match=r"\['bias'\] is the shape of an array, float32\[1, 8\]"
        ):
            aj.TrainState.create(tx=aj.adam(0.1), **arguments)
    # As the error says.
    state = jax.eval_shape(lambda params: aj.TrainState.create(params, aj.adam(0.1)), shapes)
    assert repr(state.opt_state) == repr(jax.eval_shape(lambda: create().opt_state))
    FIT_STEP.lower(state.replace(tx=aj.adam(0.1)), BATCH)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    reason: str


def test_an_exception_that_takes_no_attributes_keeps_the_state():
    def callback(state, metrics):
        raise Frozen("stop")

    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params**2))
    with pytest.raises(Frozen) as caught:
        aj.fit(state, step, [None] * 3, callback=callback)
    assert caught.value.state.step == 1
    assert len(caught.value.history["loss"]) == 1


def test_a_handler_of_the_users_own_gets_its_signals():
    got = []
    usual = signal.signal(signal.SIGINT, lambda *_: got.append(1))
    try:

        def batches():
            for number in range(3):
                if number == 1:
                    signal.raise_signal(signal.SIGINT)
                yield None

        state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
        step = aj.train_step(lambda params, batch: jnp.sum(params**2))
        state, history = aj.fit(state, step, batches())
    finally:
        signal.signal(signal.SIGINT, usual)
    assert got == [1]
    assert state.step == 3
    assert not history.interrupted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aj.train_step(lambda p, b: 0.0, compute_dtype=int), "compute_dtype=<class 'int'>"),
        (lambda: aj.train_step(lambda p, b: 0.0, compute_dtype="bf16"), "such as jnp.bfloat16"),
        (
            lambda: aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=128.0),
            r"aj.LossScale\(128.0\)",
        ),
        (
            lambda: aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)).replace(lr=0.1),
            r"no 'lr': it has step, .*replace\(tx=",
        ),
        (
            lambda: aj.TrainState.create(jnp.ones(2), (optax.EmptyState(),)),
            r"got \(EmptyState\(\),\) of type tuple\.$",
        ),
        (lambda: aj.monitor(aj.global_norm), r'\{"norm": aj.global_norm\}'),
        (lambda: aj.multi_steps(8, aj.sgd(0.1)), "multi_steps takes optax .* got 8"),
    ],
)
def test_options_that_are_none_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_two_interrupts_of_a_slow_step_keep_a_state_with_a_key(monkeypatch):
    """Keys do not tell whether they are ready; the metrics of a slow step are not, by then."""
    monkeypatch.setattr(aj.training.loop, "has_arrived", lambda tree, seconds: False)
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), rng=jax.random.key(0))
    step = aj.train_step(lambda params, batch, rng: jnp.sum(params**2))

    def callback(state, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        aj.fit(state, step, [None] * 3, callback=callback)
    assert caught.value.state.step == 1


def test_a_step_within_a_jit_that_closes_over_the_state_leaks_nothing():
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1))
    jax.make_jaxpr(lambda batch: step(state, batch))(jnp.zeros(2))
    state, metrics = step(state, jnp.zeros(2))
    assert metrics["skipped"] == 0


def test_on_several_devices_an_array_of_the_batch_is_looked_for_in_every_step(make_mesh):
    """XLA would end the process. A key of the state is only read: the batch may have it too."""
    everywhere = NamedSharding(make_mesh(8), PartitionSpec())
    params = jax.device_put(jnp.ones(8), everywhere)
    state = aj.TrainState.create(params, aj.adam(0.1), rng=jax.random.key(0))
    step = aj.train_step(lambda params, batch: jnp.sum((params - batch[0]) ** 2))
    for _ in range(2):
        state, _ = step(state, (params, state.rng))
    with pytest.raises(ValueError, match=r"state.params and batch\[0\] are one array"):
        step(state, (state.params, None))


def test_on_several_devices_the_numbers_of_the_optimizer_are_sent_once(make_mesh):
    everywhere = NamedSharding(make_mesh(8), PartitionSpec())
    state = aj.TrainState.create(jax.device_put(jnp.ones(8), everywhere), aj.adam(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params**2))
    state, _ = step(state, None)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, None)


def test_a_loss_scale_belongs_to_its_user():
    scale = aj.LossScale(jnp.array(8.0), good_steps=jnp.array(0))
    step = aj.train_step(lambda params, batch: jnp.sum(params**2))
    states = [aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale) for _ in range(2)]
    for state in states:
        step(state, None)
    with pytest.raises(TypeError, match=r"adapts, and is in the state"):
        aj.train_step(lambda params, batch: 0.0, loss_scale=aj.LossScale())


def test_histories_of_a_run_and_of_its_continuation_are_put_together():
    first, second = aj.training.History(loss=np.ones(2)), aj.training.History(loss=np.zeros(3))
    first.interrupted = True
    both = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
    assert both["loss"].shape == (5,)


@pytest.mark.parametrize(
    "factor",
    [
        lambda: optax.inject_hyperparams(optax.scale)(step_size=0.01),
        lambda: optax.masked(optax.scale(0.01), True),
        lambda: optax.contrib.split_real_and_imaginary(optax.scale(0.01)),
    ],
    ids=["inject", "masked", "split"],
)
def test_a_factor_inside_of_what_is_optax_s_is_not_overlooked(factor):
    step = aj.train_step(
        lambda params, batch: jnp.sum(params["w"] ** 2), metrics=("learning_rate",)
    )
    state = aj.TrainState.create({"w": jnp.ones(2)}, aj.chain(aj.sgd(0.1), factor()))
    with pytest.raises(ValueError, match="none is known of"):
        step(state, None)


def test_another_library_that_does_not_take_8_bits_is_named():
    params = {"w": jnp.ones(2, jnp.float8_e4m3fn)}
    state = aj.TrainState.create(params, optax.adamw(0.1))
    step = aj.train_step(lambda p, b: jnp.sum(p["w"].astype(jnp.float32)), metrics=("loss",))
    with pytest.raises(TypeError, match=r"\['w'\] is float8_e4m3fn.*one of this library's"):
        step(state, None)


def test_a_step_with_a_schedule_is_exported():
    pytest.importorskip("flatbuffers")
    tx = aj.adam(module_level_schedule)
    params = jnp.ones(2)
    update = jax.jit(lambda tx, params, state: tx.update(params, state, params))
    exported = jax.export.export(update)(tx, params, tx.init(params))
    again = jax.export.deserialize(exported.serialize())
    updates, _ = again.call(tx, params, tx.init(params))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def module_level_schedule(count):
    return 0.1 / (1 + count.astype(jnp.float32))

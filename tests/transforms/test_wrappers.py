"""Skipping, accumulating, measuring, and adding updates to low-precision parameters."""

from __future__ import annotations

import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from tqdm import tqdm

import adaptive_jax as aj
from adaptive_jax.transforms.finite import all_finite
from examples import low_precision

NAN, INF = float("nan"), float("inf")


def bits(tree):
    """The bytes of all arrays: 0.0 and -0.0 differ."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


REST = {"none": None, "empty": jnp.ones((0, 2))}
PARAMS = {"w": jnp.array([0.0, -0.0, 1.5]), "scalar": jnp.array(2.0), **REST}
GOOD = {"w": jnp.array([1.0, 2.0, 3.0]), "scalar": jnp.array(-1.0), **REST}


def bad(value):
    return {**GOOD, "scalar": jnp.array(value)}


# ---------------------------------------------------------------------------- skip_nonfinite


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_skipped_step_changes_no_bit(value, jitted):
    tx = aj.skip_nonfinite(aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.1)))
    update = jax.jit(tx.update) if jitted else tx.update
    updates, state = update(GOOD, tx.init(PARAMS), PARAMS)
    before = bits(state.inner_state)
    updates, state = update(bad(value), state, PARAMS)
    assert bits(state.inner_state) == before
    assert bits(optax.apply_updates(PARAMS, updates)) == bits(PARAMS)
    assert bits(aj.apply_updates(PARAMS, updates)) == bits(PARAMS)
    assert (int(state.consecutive), int(state.total), bool(state.stopped)) == (1, 1, False)
    _, state = update(GOOD, state, PARAMS)
    assert (int(state.consecutive), int(state.total)) == (0, 1)


def test_an_update_that_is_not_finite_is_skipped_too():
    """Finite gradients, and an optimizer that makes an infinite update of them."""
    inner = optax.stateless(lambda updates, params: jax.tree.map(lambda x: 1 / x, updates))
    tx = aj.skip_nonfinite(inner)
    params = jnp.ones(2)
    updates, state = tx.update(jnp.array([0.0, 1.0]), tx.init(params), params)
    np.testing.assert_array_equal(updates, 0.0)
    assert state.total == 1
    theirs = optax.apply_if_finite(inner, 5)
    updates, _ = theirs.update(jnp.array([0.0, 1.0]), theirs.init(params), params)
    assert jnp.isinf(updates[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_parameter_that_would_be_infinite_is_skipped_too(dtype, jitted):
    """θ and u are finite, θ + u is not. One that is infinite before says nothing, and a NaN does."""
    big = jnp.finfo(dtype).max
    mask = -INF if dtype == jnp.float32 else 0.0  # Of 16 bits, `apply_updates` makes it finite.
    params = {"w": jnp.array([0.75 * big, 1.0], dtype), "mask": jnp.array([mask, 0.0], dtype)}
    tx = aj.skip_nonfinite(aj.sgd(1.0))
    update = jax.jit(tx.update) if jitted else tx.update

    def total_after(first, mask, params=params):
        gradients = {"w": jnp.array([first, 1.0], dtype), "mask": jnp.array([mask, 0.0], dtype)}
        updates, state = update(gradients, tx.init(params), params)
        if params is not None:
            assert (bits(aj.apply_updates(params, updates)) == bits(params)) == bool(state.total)
        return int(state.total)

    assert total_after(-0.75 * big, 0.0) == 1
    assert total_after(0.75 * big, 0.0) == 0
    assert total_after(1.0, 0.0) == 0
    assert total_after(1.0, NAN) == 1
    gradients = {"w": jnp.array([-0.75 * big, 1.0], dtype), "mask": None}
    assert update(gradients, tx.init(params), params)[1].total == 1
    assert update(gradients, tx.init(params))[1].total == 0
    step = aj.train_step(
        lambda params, batch: jnp.sum(params["w"] * batch).astype(jnp.float32),
        skip_nonfinite=True,
        rounding="nearest",
    )
    state = aj.TrainState.create(params, aj.sgd(1.0))
    for first, skipped in ((1.0, 0), (-0.75 * big, 1)):
        before = bits(state.params)
        state, metrics = step(state, jnp.array([first, 0.0], dtype))
        assert metrics["skipped"] == skipped
    assert bits(state.params) == before


def test_a_skipped_step_of_a_train_step_keeps_subnormal_parameters():
    """Which a CPU takes for 0 when it adds -0.0 to them, as said of `skip_nonfinite`."""
    params = jnp.array([1e-40, -1e-40, 1.0])
    state = aj.TrainState.create(params, aj.sgd(1.0))
    step = aj.train_step(lambda params, batch: jnp.sum(params) * batch, skip_nonfinite=True)
    state, metrics = step(state, jnp.array(NAN))
    assert metrics["skipped"] == 1
    assert bits(state.params) == bits(params)


def test_a_run_that_fails_too_often_is_stopped():
    tx = aj.skip_nonfinite(aj.sgd(0.1), max_consecutive=3)
    params = jnp.ones(2)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in (NAN, NAN, 1.0, NAN, NAN):
        updates, state = update(jnp.full(2, gradient), state, params)
    aj.raise_if_stopped({"somewhere": (state,)})
    _, state = update(jnp.full(2, NAN), state, params)
    updates, state = update(jnp.ones(2), state, params)
    np.testing.assert_array_equal(updates, 0.0)  # A good gradient, but the run has stopped.
    assert (int(state.consecutive), int(state.total), bool(state.stopped)) == (3, 6, True)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row were skipped .* 6 in all"):
        aj.raise_if_stopped({"somewhere": (state,)})


PAIR = {"w": jnp.ones(2), "deep": [jnp.ones(()), jnp.ones(3)], "none": None}


def skipped(tx, steps, jitted=True):
    """The message, after so many steps with these numbers in two of the gradients."""
    update, state = jax.jit(tx.update) if jitted else tx.update, tx.init(PAIR)
    for w, deep in steps:
        gradients = {**PAIR, "w": jnp.full(2, w), "deep": [jnp.full((), deep), jnp.ones(3)]}
        _, state = update(gradients, state, PAIR)
    with pytest.raises(FloatingPointError) as caught:
        aj.raise_if_stopped(state)
    return str(caught.value)


@pytest.mark.parametrize("jitted", [False, True])
def test_the_step_and_the_arrays_that_were_not_finite_are_named(jitted):
    tx = aj.skip_nonfinite(aj.adam(0.1), max_consecutive=2)
    # A step that was skipped alone is forgotten; what comes after the first one of a row says less.
    steps = [(1.0, INF), (1.0, 1.0), (NAN, 1.0), (NAN, INF), (1.0, 1.0)]
    told = skipped(tx, steps, jitted)
    assert "2 steps in a row were skipped" in told
    assert "4 in all. It began in step 3, where the gradient at ['w'] was not finite." in told
    told = skipped(tx, [(NAN, -INF)] * 2, jitted)
    assert "in step 1, where the gradient at ['deep'][0] and the gradient at ['w'] were not" in told
    inner = optax.stateless(lambda updates, params: jax.tree.map(lambda x: 1 / x, updates))
    told = skipped(aj.skip_nonfinite(inner, 1), [(0.0, 1.0)], jitted)
    assert "in step 1, where the update at ['w'] was not finite." in told


def test_names_of_many_arrays_of_one_and_of_arguments():
    many = {f"layer{number}": jnp.ones(()) for number in range(8)}
    tx = aj.skip_nonfinite(aj.sgd(0.1), 1)
    for params, expected in (
        (many, "the gradient at ['layer4'] and 3 more were not finite"),
        (jnp.ones(2), "where the gradient was not finite"),
    ):
        _, state = tx.update(jax.tree.map(lambda x: x * NAN, params), tx.init(params), params)
        with pytest.raises(FloatingPointError, match=re.escape(expected)):
            aj.raise_if_stopped(state)
    tx = aj.skip_nonfinite(aj.momo(0.1), 1)
    _, state = tx.update(many, tx.init(many), many, value=jnp.full((), NAN))
    with pytest.raises(FloatingPointError, match="where the argument value was not finite"):
        aj.raise_if_stopped(state)


def test_of_many_runs_at_once_the_one_that_stopped_is_named():
    tx = aj.skip_nonfinite(aj.sgd(0.1), 2)
    states = jax.vmap(tx.init)(jnp.ones((3, 2)))
    update = jax.jit(jax.vmap(tx.update))
    for bad in (0, 2, 2):
        gradients = jnp.ones((3, 2)).at[bad, 0].set(NAN)
        _, states = update(gradients, states, jnp.ones((3, 2)))
    with pytest.raises(FloatingPointError, match=r"2 in all\. Of run 2: It began in step 2, where"):
        aj.raise_if_stopped(states)


def test_what_names_the_arrays_costs_no_second_program(compiled):
    tx = aj.skip_nonfinite(aj.sgd(0.1), 3)
    update, state = jax.jit(tx.update, donate_argnums=1), tx.init(PAIR)
    _, state = update(PAIR, state, PAIR)
    before = len(compiled)
    for value in (NAN, 1.0, NAN, NAN):
        _, state = update({**PAIR, "w": np.full(2, value, np.float32)}, state, PAIR)
    assert len(compiled) == before
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PAIR))
    mapped = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert again.nonfinite.paths.names == ("['deep'][0]", "['deep'][1]", "['w']")


def test_a_state_without_names_goes_on():
    """As version 0.1.0 pickled it."""
    tx = aj.skip_nonfinite(aj.sgd(0.1), 1)
    old = type(tx.init(PAIR))(*tx.init(PAIR)[:4])
    _, state = jax.jit(tx.update)({**PAIR, "w": jnp.full(2, NAN)}, old, PAIR)
    with pytest.raises(FloatingPointError, match=r"1 in all\. The parameters are"):
        aj.raise_if_stopped(state)


def test_skips_in_a_scan_and_in_a_chain():
    tx = aj.chain(aj.skip_nonfinite(aj.adam(0.1)), optax.scale(2.0))
    gradients = jnp.array([[1.0, 2.0], [NAN, 1.0], [3.0, 4.0]])
    params = jnp.zeros(2)

    def body(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, updates

    state, updates = jax.jit(lambda: jax.lax.scan(body, tx.init(params), gradients))()
    np.testing.assert_array_equal(updates[1], 0.0)
    expected, _ = jax.lax.scan(body, tx.init(params), gradients[jnp.array([0, 2])])
    np.testing.assert_allclose(state[0].inner_state[0].mu, expected[0].inner_state[0].mu)


# ---------------------------------------------------------------------------- multi_steps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_accumulation_is_the_whole_batch_to_rounding(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        gradients = jnp.asarray(rng.normal(size=(6, 5)), dtype)
        params = jnp.zeros(5, dtype)
        wide = "float64" if dtype == "float64" else "float32"
        tx, inner = aj.multi_steps(aj.adam(0.1), 3), aj.adam(0.1)
        state, expected = tx.init(params), inner.init(params)
        for start in (0, 3):
            for gradient in gradients[start : start + 3]:
                updates, state = tx.update(gradient, state, params)
                assert updates.dtype == dtype
            whole = jnp.mean(gradients[start : start + 3].astype(wide), axis=0)
            direction, expected = inner.update(whole, expected, params)
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(state.inner_opt_state[0].mu, expected[0].mu, rtol=tolerance)
        np.testing.assert_allclose(
            updates.astype(wide), direction.astype(dtype).astype(wide), rtol=tolerance
        )
        assert (int(state.mini_step), int(state.gradient_step)) == (0, 2)


def test_a_mini_step_leaves_the_parameters_as_they_are():
    tx = aj.multi_steps(aj.sgd(0.1), 2)
    updates, state = tx.update(GOOD, tx.init(PARAMS), PARAMS)
    assert bits(aj.apply_updates(PARAMS, updates)) == bits(PARAMS)
    assert state.mini_step == 1
    assert updates["none"] is None


def test_a_schedule_of_group_sizes():
    tx = aj.multi_steps(aj.sgd(1.0), lambda step: step + 1)
    state, seen = tx.init(jnp.zeros(())), []
    for gradient in (1.0, 2.0, 4.0, 3.0, 3.0, 3.0):
        updates, state = jax.jit(tx.update)(jnp.array(gradient), state)
        seen.append(float(updates))
    assert seen == [-1.0, 0.0, -3.0, 0.0, 0.0, -3.0]
    tx = aj.multi_steps(aj.sgd(1.0), lambda step: step)  # 0 counts as 1.
    state, seen = tx.init(jnp.zeros(())), []
    for gradient in (1.0, 2.0, 4.0, 3.0):
        updates, state = jax.jit(tx.update)(jnp.array(gradient), state)
        seen.append(float(updates))
    assert seen == [-1.0, -2.0, 0.0, -3.5]


@pytest.mark.parametrize("correction", ["parameter", "int8"])
def test_compensation_goes_around_accumulation(correction):
    """Inside, its updates are rounded to the dtype of the gradients."""
    start = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.bfloat16)
    gradient = jnp.ones_like(start)

    def way(tx, params):
        update = jax.jit(tx.update)
        state = tx.init(params)
        for _ in range(40):
            updates, state = update(gradient, state, params)
            params = aj.apply_updates(params, updates)
        return aj.exact_params(params, state)

    accumulating = aj.multi_steps(aj.sgd(2.0**-9), 2)  # Exact in bfloat16.
    expected = way(accumulating, start.astype(jnp.float32))
    margin = 2.0**-15 * jnp.abs(start.astype(jnp.float32)) + 1e-4
    actual = way(aj.compensate(accumulating, correction), start)
    assert (jnp.abs(actual - expected) <= margin).all()


def test_the_optimizer_runs_once_per_group():
    """In XLA's program the optimizer stands in one branch of a conditional, and runs there alone."""
    runs = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: runs.append(1))
        return updates, state

    tx = aj.multi_steps(optax.GradientTransformation(lambda _: optax.EmptyState(), update), 4)
    step, state = jax.jit(tx.update), tx.init(jnp.ones(2))
    for _ in range(8):
        _, state = step(jnp.ones(2), state)
    jax.effects_barrier()
    assert len(runs) == 2


def test_accumulation_needs_no_second_copy_of_the_state():
    params = jnp.ones(100_000)
    tx = aj.multi_steps(aj.adam(0.1), 4)

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return aj.apply_updates(params, updates), state

    state = tx.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    # The updates and one array more: the state has three of them, mu, nu and the mean.
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * params.nbytes + 1024


def test_other_wrappers_of_optax_go_around_and_inside():
    params = {"w": jnp.ones(3)}
    tx = optax.chain(optax.apply_if_finite(aj.multi_steps(aj.skip_nonfinite(aj.adam(0.1)), 2), 3))
    state = tx.init(params)
    for _ in range(4):
        updates, state = jax.jit(tx.update)(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-5)


# ---------------------------------------------------------------------------- all of them

WRAPPED = {
    "skip_nonfinite": lambda lr: aj.skip_nonfinite(aj.adam(lr), max_consecutive=5),
    "multi_steps": lambda lr: aj.multi_steps(aj.adam(lr), 2),
    "compensate": lambda lr: aj.compensate(aj.adam(lr)),
    "monitor": lambda lr: aj.chain(aj.monitor({"norm": aj.global_norm}), aj.adam(lr)),
    "partition": lambda lr: aj.partition({"a": aj.adam(lr)}, [("", "a")]),
    "masked": lambda lr: aj.masked(aj.adam(lr), True),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)


@every_wrapper
def test_hyperparameters_of_what_is_inside_are_data(make):
    params = {"w": jnp.ones(3)}
    update = jax.jit(lambda tx, state: tx.update(params, state, params))
    for rate in (0.1, 0.2):
        tx = make(rate)
        _, state = update(tx, tx.init(params))
        update(tx, state)
    assert update._cache_size() == 1
    many = jax.vmap(make)(jnp.array([0.1, 0.2]))
    updates, _ = jax.vmap(lambda tx: tx.update(params, tx.init(params), params))(many)
    assert updates["w"].shape == (2, 3)


@every_wrapper
def test_repr_and_bad_state(make):
    tx = make(0.1)
    assert "adam(learning_rate=0.1" in repr(tx)
    with pytest.raises(ValueError, match=r"made by another optimizer|state of a chain"):
        tx.update(PARAMS, optax.EmptyState(), PARAMS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aj.skip_nonfinite(aj.Rule), "skip_nonfinite takes optax gradient transformations"),
        (lambda: aj.skip_nonfinite(aj.sgd(0.1), 0), "max_consecutive=0 must be a whole number"),
        (lambda: aj.multi_steps(aj.sgd(0.1), 2.5), "every_k_schedule=2.5 must be a whole number"),
        (lambda: aj.monitor({"norm": 3}), r"measures\['norm'\]=3 is no function"),
        (lambda: aj.compensate(aj.sgd(0.1)).update(1.0, None), "made by another optimizer"),
        (lambda: aj.apply_updates(jnp.ones(2), jnp.ones(3)), "must have one shape"),
        (lambda: aj.apply_updates({"a": jnp.ones(2)}, {"b": jnp.ones(2)}), "differ in structure"),
        (lambda: aj.apply_updates(jnp.ones(2), jnp.ones(2), rounding="up"), "rounding='up' is not"),
        (lambda: aj.apply_updates(jnp.ones(2), jnp.ones(2), rounding="stochastic"), "which needs it"),
        (lambda: aj.apply_updates(jnp.ones(2), jnp.ones(2), step=1), "step is for stochastic rounding"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_all_finite():
    assert all_finite({})
    assert all_finite({"a": jnp.ones(2), "b": None, "c": jnp.ones((0, 3))})
    assert not all_finite({"a": jnp.ones(2), "b": jnp.array(INF)})
    assert not all_finite(jnp.array([1.0 + 1j * NAN]))


# ---------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_unbiased(dtype):
    """The mean over 4,000 steps is the number: to five standard errors of it."""
    limits = jnp.finfo(dtype)
    numbers = np.concatenate(
        [
            np.float32([1.001, -1.001, 0.3, 7e-3, 1000.3]),
            float(limits.tiny) * np.float32([1.3, -3.7]),
        ]
    )
    zeros = jnp.zeros(len(numbers), dtype)
    rounded = jax.vmap(
        lambda step: aj.apply_updates(zeros, jnp.asarray(numbers), rounding="stochastic", step=step)
    )(jnp.arange(4000))
    rounded = np.asarray(rounded.astype(jnp.float32)).astype(np.float64)
    below, above = rounded.min(axis=0), rounded.max(axis=0)
    assert (below <= numbers).all()
    assert (above >= numbers).all()
    for column, low, high in zip(rounded.T, below, above, strict=True):
        assert set(column) <= {low, high}  # Its two neighbours, no other number.
    spacing = above - below
    assert (spacing <= np.maximum(np.abs(numbers) * float(limits.eps), 2.0**-126)).all()
    np.testing.assert_allclose(
        rounded.mean(axis=0), numbers, atol=5 * 0.5 / np.sqrt(4000) * spacing.max(), rtol=1e-3
    )


FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", *FLOAT8, "float4_e2m1fn"])
def test_an_update_of_zero_changes_no_bit(dtype):
    """Every number of the dtype, in many steps; and what is too large becomes the largest."""
    dtype = jnp.dtype(dtype)
    largest = float(jnp.finfo(dtype).max)
    numbers = jnp.asarray(np.linspace(-largest, largest, 50_000), jnp.float32).astype(dtype)
    small = jnp.asarray(np.random.default_rng(0).normal(size=50_000), jnp.float32).astype(dtype)
    apply = jax.jit(functools.partial(aj.apply_updates, rounding="stochastic"))
    for params in (numbers, small):
        for step in range(10):
            new = apply(params, jnp.full(params.shape, -0.0), step=step)
            assert bits(new.astype(jnp.float32)) == bits(params.astype(jnp.float32))
    over = apply(numbers[-1:], jnp.full(1, largest * 2.0**-10), step=0)
    assert float(over[0]) == largest


@pytest.mark.parametrize("dtype", [*FLOAT8, "float4_e2m1fn"])
def test_rounding_to_8_bits_is_unbiased(dtype):
    dtype, size = jnp.dtype(dtype), 200_000
    for number in (0.3, -1.3, 2.9, float(jnp.finfo(dtype).smallest_subnormal) * 0.3):
        params, updates = jnp.zeros(size, dtype), jnp.full(size, number)
        new = aj.apply_updates(params, updates, rounding="stochastic", step=1).astype(jnp.float32)
        spacing = float(new.max() - new.min())
        assert len(np.unique(new)) == 2
        assert abs(float(new.mean()) - number) < 5 * 0.5 * spacing / np.sqrt(size)


def test_parameters_of_8_bits_follow_float32_with_a_correction():
    tx, exact = aj.compensate(aj.sgd(1e-3)), 1.0 - 300 * 1e-3
    for dtype in FLOAT8:
        params = jnp.ones(4, dtype)
        state = tx.init(params)
        for _ in range(300):
            updates, state = tx.update(jnp.ones(4), state, params)
            params = aj.apply_updates(params, updates)
        np.testing.assert_allclose(aj.exact_params(params, state), exact, rtol=5e-3)


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match=r"params\['n'\] is int32\[2\].*floating-point"):
        aj.apply_updates({"n": jnp.arange(2)}, {"n": jnp.full(2, 0.7)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_leaves_the_grid_alone(dtype):
    """What the dtype can hold stays as it is; what is not finite stays that."""
    limits = jnp.finfo(dtype)
    values = [0.0, 1.0, -2.5, float(limits.max), float(limits.min), float(limits.tiny)]
    params = jnp.asarray(values, dtype)
    new = aj.apply_updates(params, jnp.zeros_like(params), rounding="stochastic", step=3)
    np.testing.assert_array_equal(new, params)
    for value in (NAN, INF, -INF):
        bad = jnp.full_like(params, value)
        new = aj.apply_updates(params, bad, rounding="stochastic", step=3)
        assert not jnp.isfinite(new).any()


def test_steps_and_arrays_have_bits_of_their_own():
    params = [jnp.ones(4096, jnp.bfloat16)] * 2
    updates = [jnp.full(4096, 1e-3)] * 2
    up = lambda step: [  # noqa: E731
        np.asarray(leaf.astype(jnp.float32)) > 1
        for leaf in aj.apply_updates(params, updates, rounding="stochastic", step=step)
    ]
    first, second = up(0), up(1)
    share = first[0].mean()
    assert share == pytest.approx(1e-3 / 2**-7, rel=0.2)
    for one, other in [(first[0], first[1]), (first[0], second[0]), (first[1], second[1])]:
        assert np.mean(one & other) == pytest.approx(share**2, abs=0.01)
    np.testing.assert_array_equal(up(0)[0], first[0])  # The same step, the same parameters.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_rounding_is_the_same_whatever_the_sharding(make_mesh, dtype):
    mesh = make_mesh(4)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jnp.ones((8, 33), jnp.dtype(dtype))
    updates = jnp.full((8, 33), 1e-3)
    apply = jax.jit(
        lambda params, updates: aj.apply_updates(params, updates, rounding="stochastic", step=7)
    )
    here, there = apply(params, updates), apply(*jax.device_put((params, updates), split))
    assert bits(here) == bits(there)
    assert there.sharding.is_equivalent_to(split, 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: aj.skip_nonfinite(tx),
        lambda tx: aj.multi_steps(tx, 2),
        lambda tx: aj.compensate(tx),
        lambda tx: aj.compensate(tx, "int8"),
        lambda tx: aj.chain(aj.monitor({"norm": aj.global_norm}), aj.clip_by_global_norm(1.0), tx),
        lambda tx: aj.chain(aj.partition({"a": tx}, "a"), aj.masked(aj.trace(0.9), {"w": True})),
    ],
    ids=[
        "skip_nonfinite",
        "multi_steps",
        "compensate",
        "compensate int8",
        "monitor and clip",
        "groups",
    ],
)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_wrappers_on_a_mesh(make_mesh, wrap, dtype):
    mesh = make_mesh(4)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    tx = wrap(aj.adam(0.1, storage=aj.Blocks(min_size=0, block=16)))
    here = {"w": jax.random.normal(jax.random.key(0), (8, 64)).astype(jnp.dtype(dtype))}
    there = jax.device_put(here, split)
    step = jax.jit(tx.update)
    states = tx.init(here), tx.init(there)
    for _ in range(2):
        (one, first), (other, second) = (
            step(params, state, params) for params, state in zip((here, there), states, strict=True)
        )
        states = first, second
    np.testing.assert_allclose(
        one["w"].astype(jnp.float32), other["w"].astype(jnp.float32), rtol=1e-5
    )
    assert other["w"].sharding.is_equivalent_to(split, 2)


def test_parameters_of_32_bits_are_left_alone():
    params, updates = jnp.array([1.0, 2.0]), jnp.array([1e-7, 1e-3])
    new = aj.apply_updates(params, updates, rounding="stochastic", step=0)
    np.testing.assert_array_equal(new, params + updates)
    tx = aj.compensate(aj.sgd(0.1))
    state = tx.init({"w": params, "none": None})
    assert not jax.tree.leaves(state.correction)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_compensated_parameters_follow_float32(dtype):
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.normal(size=200), dtype)
    low, high = start, start.astype(jnp.float32)
    tx, reference = aj.compensate(aj.adam(1e-4)), aj.adam(1e-4)
    state, expected = tx.init(low), reference.init(high)
    step = jax.jit(tx.update)
    for gradient in rng.normal(size=(500, 200)).astype(np.float32):
        updates, state = step(gradient, state, low)
        low = aj.apply_updates(low, updates)
        assert low.dtype == dtype
        updates, expected = reference.update(gradient, expected, high)
        high = high + updates
    exact = low.astype(jnp.float32) + state.correction.astype(jnp.float32)
    eps = float(jnp.finfo(dtype).eps)
    error = np.abs(exact - high)
    assert error.max() <= 500 * eps**2 * float(np.abs(high).max())
    assert np.abs(low.astype(jnp.float32) - high).max() <= eps * float(np.abs(high).max())


def test_global_norm_of_mixed_dtypes():
    """The scale that keeps float64 from overflowing would take every float32 array to 0."""
    with jax.enable_x64(True):
        tree = {
            "wide": jnp.array([3.0], jnp.float64),
            "single": jnp.array([4.0], jnp.float32),
            "complex": jnp.array([12.0j], jnp.complex64),
            "half": jnp.array([84.0], jnp.bfloat16),
            "none": None,
        }
        assert float(aj.global_norm(tree)) == pytest.approx(85.0, rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-37, 1e-20, 1.0, 1e20, 1e38])
def test_global_norm_of_any_size(size):
    tree = [jnp.full(4, size), jnp.zeros((0, 2))]
    assert float(aj.global_norm(tree)) == pytest.approx(2 * size, rel=1e-6, abs=0)
    gradient = jax.grad(lambda x: aj.global_norm([x]))(jnp.full(4, size))
    np.testing.assert_allclose(gradient, 0.5 if size else 0.0, rtol=1e-6)
    updates, _ = aj.clip_by_global_norm(1.0).update(tree, optax.EmptyState())
    np.testing.assert_allclose(updates[0], min(size, 0.5), rtol=1e-6)
    assert not np.isfinite(aj.global_norm([jnp.array([size, NAN])]))
    assert not np.isfinite(aj.global_norm([jnp.array([size, INF])]))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_norm_of_any_size_in_one_pass(dtype):
    """As GPUs and TPUs are told to add it up."""
    in_one_pass = jax.jit(aj.maths._norm_of_three)
    numbers = np.random.default_rng(0)
    for least, most in [(-37, 37), (-37, -36), (-16, -14), (14, 16), (36, 37)]:
        x = (10 ** numbers.uniform(least, most, 100) * numbers.choice([-1, 1], 100)).astype(dtype)
        expected = np.linalg.norm(x.astype("complex128"))
        np.testing.assert_allclose(float(in_one_pass(x)), expected, rtol=1e-6)
    for special in (INF, -INF, NAN):
        x = np.array([special, 1e-37, 1.0, 1e37], dtype)
        np.testing.assert_array_equal(in_one_pass(x), abs(special))
    assert in_one_pass(np.zeros(3, dtype)) == in_one_pass(np.zeros(0, dtype)) == 0


@pytest.mark.slow
@jax.numpy_rank_promotion("allow")  # The example adds a bias to every row.
def test_a_network_in_bfloat16_ends_where_float32_does():
    """Within the noise of the seeds, and to nearest visibly not: what the README's figure shows."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    with tqdm(disable=True) as progress:
        losses = {
            way: low_precision.train(way, images, labels, seeds=10, epochs=40, progress=progress)[
                1
            ][:, -1]
            for way in low_precision.WAYS
        }
    truth = losses["float32"]
    for way in ("bfloat16, stochastic", "bfloat16, compensated"):
        assert abs(losses[way].mean() - truth.mean()) < truth.std()
    assert losses["bfloat16, to nearest"].min() > truth.max() + 3 * truth.std()


def test_weights_of_24_bits_follow_float32():
    params = jax.random.normal(jax.random.key(0), (1000,)).astype(jnp.bfloat16)
    tx, reference = aj.compensate(aj.sgd(1e-4), "int8"), params.astype(jnp.float32)
    low, state = params, tx.init(params)
    assert state.correction.dtype == jnp.int8
    for step in range(200):
        gradient = jax.random.normal(jax.random.key(step), (1000,))
        updates, state = tx.update(gradient, state, low)
        low = aj.apply_updates(low, updates)
        reference = reference - 1e-4 * gradient
    exact = aj.exact_params(low, state)
    # The nearest bfloat16: to half a step.
    np.testing.assert_allclose(exact, low.astype(jnp.float32), rtol=2.0**-8)
    # Each step rounds to 16 bits after the point of a number up to 4.
    assert float(jnp.abs(exact - reference).max()) < 200 * 2.0**-16
    assert float(jnp.abs(exact - reference).mean()) < 1e-4
    assert float(jnp.abs(low.astype(jnp.float32) - reference).mean()) > 5e-4


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn])
def test_parameters_of_few_bits_take_updates_in_float32(dtype):
    """Their mean is that of the exact sums; what would lose small updates is refused by name."""
    params = {"w": jnp.full(100_000, 1.5, dtype)}
    for size in (1e-3, -1e-3, 0.3, 0.0):
        updates = {"w": jnp.full(100_000, size)}
        new = aj.apply_updates(params, updates, rounding="stochastic", step=3)["w"]
        assert new.dtype == dtype
        assert abs(float(new.astype(jnp.float32).mean()) - 1.5 - size) < 2e-3
        assert size or (new == params["w"]).all()
    coarse = jax.tree.map(lambda x: x.astype(dtype), updates)
    with pytest.raises(
        TypeError, match=rf"update at \['w'\] is {jnp.dtype(dtype).name}.*in float32"
    ):
        aj.apply_updates(params, coarse, rounding="stochastic", step=3)


def test_scales_without_a_sign_are_no_parameters():
    params = {"w": jnp.ones(3, jnp.float8_e8m0fnu)}
    with pytest.raises(TypeError, match=r"\['w'\] is float8_e8m0fnu, which has neither 0 nor"):
        aj.apply_updates(params, {"w": jnp.ones(3)}, rounding="stochastic", step=0)


def test_gradients_of_8_bits_lose_nothing_where_they_are_compensated():
    tx = aj.compensate(aj.adam(5e-4))
    params = jnp.ones(3, jnp.float8_e4m3fn)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(200):
        updates, state = step(jnp.ones_like(params), state, params)
        params = aj.apply_updates(params, updates)
    np.testing.assert_allclose(aj.exact_params(params, state), 0.9, rtol=2e-3)


@pytest.mark.parametrize("correction", ["parameter", "int8"])
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_infinite_parameters_that_are_not_trained_stay_beside_compensated_ones(correction):
    """Such as a mask of attention in a frozen group."""
    tx = aj.compensate(
        aj.partition({"on": aj.sgd(0.1), "off": optax.set_to_zero()}, {"w": "on", "mask": "off"}),
        correction,
    )
    params = {
        "w": jnp.ones(2, jnp.bfloat16),
        "mask": jnp.array([-jnp.inf, 0, jnp.inf], jnp.bfloat16),
    }
    state, now = tx.init(params), params
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, now)
        now = optax.apply_updates(now, updates)
    trained = aj.TrainState.create(jax.tree.map(jnp.copy, params), tx)
    step = aj.train_step(lambda params, _: jnp.sum(params["w"].astype(jnp.float32)), metrics=())
    for _ in range(3):
        trained, _ = step(trained, ())
    for found in (now, trained.params, aj.exact_params(now, state), trained.eval_params()):
        np.testing.assert_array_equal(found["mask"], params["mask"])
        np.testing.assert_allclose(found["w"].astype(jnp.float32), 0.7, rtol=1e-2)

"""Adafactor, LAMB, LARS and their pieces: the papers, arrays of every kind, and numbers of others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from tests import reference

STEPS = 200


def falling(steps):
    return np.float32(0.1) * np.float32(0.99) ** np.arange(steps, dtype=np.float32)


CASES = {
    "adafactor": ("adafactor", (48,), {}),
    "adafactor of a matrix": ("adafactor", (8, 6), {"min_dim_size_to_factor": 2}),
    "adafactor of a stack": ("adafactor", (6, 2, 6), {"min_dim_size_to_factor": 5}),
    "adafactor of the last axes": (
        "adafactor", (8, 2, 3), {"min_dim_size_to_factor": 0, "factored_axes": "last", "decay_rate": 0.7}
    ),
    "adafactor not factored": ("adafactor", (8, 6), {"factored": False, "clipping_threshold": 0.5}),
    "adafactor of a number": ("adafactor", (), {"learning_rate": 0.1}),
    "adafactor momentum": (
        "adafactor", (8, 6), {"min_dim_size_to_factor": 0, "momentum": 0.9, "weight_decay": 0.3}
    ),
    "adafactor scheduled": (
        "adafactor", (8, 6), {"min_dim_size_to_factor": 0, "learning_rate": falling, "momentum": 0.9}
    ),
    "adafactor of big_vision": (
        "adafactor", (8, 6),
        {
            "learning_rate": falling, "min_dim_size_to_factor": 2, "multiply_by_parameter_scale": False,
            "clipping_threshold": None, "momentum": 0.9, "velocity": "gradients", "decay_cap": 0.9,
            "weight_decay": 0.3,
        },
    ),
    "adafactor late": (
        "adafactor", (8, 6), {"decay_offset": 20, "eps": 1e-3, "min_scale": 2.0, "learning_rate": 0.1}
    ),
    "lamb": ("lamb", (8, 6), {"learning_rate": 0.1}),
    "lamb weight decay": ("lamb", (8, 6), {"learning_rate": falling, "weight_decay": 0.3}),
    "lamb bounded": (
        "lamb", (8, 6), {"learning_rate": 0.1, "max_norm": 2.0, "b1": 0.5, "b2": 0.9, "eps": 1e-3}
    ),
    "lars": ("lars", (8, 6), {"learning_rate": 0.1}),
    "lars weight decay": (
        "lars", (8, 6), {"learning_rate": falling, "weight_decay": 0.3, "trust_coefficient": 0.1}
    ),
    "lars nesterov": (
        "lars", (8, 6), {"learning_rate": 0.1, "weight_decay": 0.3, "nesterov": True, "eps": 0.01}
    ),
    "lars of optax": (
        "lars", (8, 6),
        {"learning_rate": 0.1, "weight_decay": 0.3, "sum_of_norms": False, "momentum": 0.5},
    ),
}  # fmt: skip
TOLERANCE = {"float64": 1e-12, "float32": 2e-6}


def problem(shape, dtype):
    """Gradients of scales from 10⁻³ to 10, a tenth of them 0, and the first parameters."""
    rng = np.random.default_rng(1804)
    gradients = rng.normal(size=(STEPS, *shape)) * 10 ** rng.uniform(-3, 1, shape)
    gradients = gradients * (rng.random(gradients.shape) > 0.1)
    return tuple(x.astype(dtype).astype(np.float64) for x in (gradients, rng.normal(size=shape)))


def with_schedules(settings, of):
    return {name: of(x) if callable(x) else x for name, x in settings.items()}


def updates_of(tx, gradients, params, dtype):
    """The updates in all steps, each of parameters that are given."""

    @jax.jit
    def run(gradients, params):
        def step(state, inputs):
            updates, state = tx.update(inputs[0], state, inputs[1])
            return state, updates

        return jax.lax.scan(step, tx.init(params[0]), (gradients, params))[1]

    updates = run(jnp.asarray(gradients, dtype), jnp.asarray(params, dtype))
    assert updates.dtype == dtype
    return np.asarray(updates, np.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_follows_the_paper(case, dtype):
    """An error is relative to the largest number of the step: all are made of one norm."""
    name, shape, settings = CASES[case]
    gradients, first = problem(shape, dtype)
    values = with_schedules(settings, lambda x: x(STEPS).astype(np.float64))
    expected = getattr(reference, name)(gradients, first, **values)
    params = np.cumsum(np.concatenate([first[None], expected[:-1]]), axis=0)
    params = params.astype(dtype).astype(np.float64)
    with jax.enable_x64(dtype == "float64"):
        scheduled = with_schedules(settings, lambda x: lambda i: jnp.asarray(x(STEPS))[i])
        actual = updates_of(getattr(aj, name)(**scheduled), gradients, params, dtype)
    axes = tuple(range(1, actual.ndim))
    size = np.abs(expected).max(axes, keepdims=True)
    error = np.abs(actual - expected) / np.where(size > 0, size, 1)
    assert error.max() <= TOLERANCE[dtype], (
        f"{error.max():.3g} in step {error.max(axes).argmax() + 1}"
    )
    if not {"momentum", "weight_decay"} & {*settings} and name == "adafactor":
        size = np.abs(expected)  # Nothing is added up: each number by itself.
        error = np.abs(actual - expected) / np.where(size > 0, size, 1)
        assert error.max() <= TOLERANCE[dtype]


def test_every_case_is_another():
    gradients, params = problem((8, 6), "float64")
    results = []
    for case, (name, shape, settings) in CASES.items():
        if shape == (8, 6):
            values = with_schedules(settings, lambda x: x(STEPS).astype(np.float64))
            results.append((case, getattr(reference, name)(gradients, params, **values)))
    for i, (case, result) in enumerate(results):
        for other, same in results[:i]:
            assert not np.allclose(result, same, rtol=1e-3, atol=0), (case, other)


def test_adafactor_of_squares_of_rank_one_is_rmsprop():
    """Rows and columns are all that there is to know of a matrix of rank one."""
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(0.5, 2, (30, 8, 1)), rng.uniform(0.5, 2, (1, 1, 6))
    gradients = jnp.asarray(np.sqrt(rows * columns) * rng.choice([-1, 1], (30, 8, 6)), jnp.float32)
    shared = {"learning_rate": 0.1}
    plain = {"clipping_threshold": None, "multiply_by_parameter_scale": False}
    ours = aj.adafactor(min_dim_size_to_factor=0, **plain, **shared)
    root = aj.rmsprop(
        decay=lambda count: 1 - (count.astype(jnp.float32) + 1) ** -0.8, eps=1e-30, **shared
    )
    params = jnp.zeros((30, 8, 6))
    both = [updates_of(tx, gradients, params, "float32") for tx in (ours, root)]
    np.testing.assert_allclose(*both, rtol=2e-5)


def test_the_state_of_adafactor_is_a_number_for_each_row_and_column():
    tx = aj.adafactor()
    state = jax.eval_shape(tx.init, {"w": jnp.zeros((3, 256, 128)), "b": jnp.zeros(256)})
    factors = state[0]
    assert factors.v_row["w"].shape == (3, 128)
    assert factors.v_col["w"].shape == (3, 256)
    assert factors.v["w"].shape == factors.v_row["b"].shape == factors.v_col["b"].shape == (1,)
    assert factors.v["b"].shape == (256,)
    last = jax.eval_shape(aj.adafactor(factored_axes="last").init, jnp.zeros((256, 128, 3)))[0]
    assert last.v.shape == (256, 128, 3), "the last axis is too short"
    theirs = optax.adafactor().init({"w": jnp.zeros(()), "b": jnp.zeros(())})[0]
    assert jax.tree.structure(factors) == jax.tree.structure(theirs)


def test_numbers_of_keras():
    """adafactor_test.py and lamb_test.py of Keras 3."""
    tx = aj.adafactor(0.5, min_dim_size_to_factor=0, factored_axes="last")
    params, gradients = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 6.0], [7.0, 2.0]])
    updates, _ = tx.update(gradients, tx.init(params), params)
    expected = [[0.7007, -0.0081], [1.2492, 3.4407]]
    np.testing.assert_allclose(params + updates, expected, atol=1e-4)

    tx = aj.adafactor(
        lambda count: jnp.minimum(0.5, 1 / jnp.sqrt(count.astype(jnp.float32) + 1)),
        decay_rate=0.65, eps=1e-15, min_scale=1e-4, clipping_threshold=0.9,
    )  # fmt: skip
    of_adafactor = [
        (0.55, 0.55),
        (0.3031, 0.3024),
        (0.1671, 0.1663),
        (0.0923, 0.0914),
        (0.0554, 0.0545),
    ]
    of_lamb = [(x, x) for x in (0.999, 0.9982, 0.9974, 0.9965, 0.9955)]
    lamb = aj.lamb(0.001, eps=1e-7)  # Keras itself is 2.6e-4 away from its numbers.
    for each, golden, atol in ((tx, of_adafactor, 1e-4), (lamb, of_lamb, 7e-4)):
        params = jnp.ones(10)
        state = each.init(params)
        for step, ends in enumerate(golden):
            gradients = jnp.full(10, 0.01) if step == 0 else jnp.arange(0.1, 1.05, 0.1)
            updates, state = each.update(gradients, state, params)
            params = params + updates
            np.testing.assert_allclose(params[jnp.array([0, -1])], ends, atol=atol)


def test_a_step_of_lamb_is_as_long_as_the_rate_of_the_array():
    gradients, _ = problem((8, 6), "float32")
    params = {"w": jnp.ones((8, 6)) * 3, "b": jnp.arange(6.0)}
    tx, step = aj.lamb(0.01, weight_decay=0.1), 0
    state = tx.init(params)
    for step in range(3):
        grads = {
            "w": jnp.asarray(gradients[step], jnp.float32),
            "b": jnp.asarray(gradients[step, 0], jnp.float32),
        }
        updates, state = tx.update(grads, state, params)
        for name, param in params.items():
            length = jnp.linalg.norm(updates[name]) / jnp.linalg.norm(param)
            np.testing.assert_allclose(length, 0.01, rtol=1e-6)
    zeros = jnp.zeros(3)
    tx = aj.lamb(0.01)
    np.testing.assert_allclose(tx.update(jnp.ones(3), tx.init(zeros), zeros)[0], -0.01, rtol=1e-5)


@pytest.mark.parametrize("mask", [{"w": True, "b": False}, lambda params: {"w": True, "b": False}])
def test_masks_of_lars(mask):
    """What is left out of the decay is still scaled, and what is left out of the ratio still decays."""
    params = {"w": jnp.full((2, 2), 2.0), "b": jnp.full(2, 2.0)}
    ones = jax.tree.map(jnp.ones_like, params)

    def first(**masks):
        tx = aj.lars(1.0, weight_decay=0.5, trust_coefficient=0.1, momentum=0.0, **masks)
        updates, _ = tx.update(ones, tx.init(params), params)
        return float(updates["w"].ravel()[0]), float(updates["b"][0])

    # ‖g‖ = ‖θ‖/2 and λ‖θ‖ = ‖θ‖/2: with decay 0.1·2/(1 + 1)·(1 + 1), without 0.1·2.
    scaled, alone, whole = -0.1 * 2 / 2 * 2, -0.1 * 2, -2.0
    np.testing.assert_allclose(first(), (scaled, scaled), rtol=1e-6)
    np.testing.assert_allclose(first(mask=mask), (scaled, alone), rtol=1e-6)
    np.testing.assert_allclose(first(trust_ratio_mask=mask), (scaled, whole), rtol=1e-6)
    np.testing.assert_allclose(first(mask=mask, trust_ratio_mask=mask), (scaled, -1.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", "lars", "lamb"])
def test_weight_decay(name):
    """Adafactor's is η times the parameter; that of LARS and LAMB is inside the norm."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = getattr(aj, name)(0.5, weight_decay=0.1, mask={"w": True, "b": False})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    expected = {"adafactor": -0.5 * 0.1, "lamb": -0.5, "lars": -0.5 * 0.001}[name]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0.0)


def test_a_matrix_of_adafactor_on_a_mesh(make_mesh):
    split = jax.sharding.NamedSharding(make_mesh(4), jax.sharding.PartitionSpec(None, "x"))
    here = jax.random.normal(jax.random.key(0), (8, 16))
    tx = aj.adafactor(min_dim_size_to_factor=0, momentum=0.9)
    there = jax.device_put(here, split)
    (updates, state), (expected, _) = (jax.jit(tx.update)(x, tx.init(x), x) for x in (there, here))
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
    assert updates.sharding.is_equivalent_to(split, 2)
    columns = jax.sharding.NamedSharding(split.mesh, jax.sharding.PartitionSpec("x"))
    assert state[0].v_col.sharding.is_equivalent_to(columns, 1)


# Clipping and centralization by unit


KERNEL = jax.random.normal(jax.random.key(1), (3, 5, 4, 6))  # (height, width, inputs, outputs)
TORCH = aj.MatrixAxes(rows=..., columns=0)


@pytest.mark.parametrize(
    ("factory", "settings"), [(aj.centralize, {}), (aj.adaptive_grad_clip, {"clipping": 0.1})]
)
def test_units_are_the_same_in_every_layout(factory, settings):
    """A unit is an output: of Flax's kernels, of PyTorch's, of each layer of many, and by path."""
    gradients = jax.random.normal(jax.random.key(2), KERNEL.shape)

    def update(axes, move):
        tx = factory(**settings, axes=axes)
        params, grads = move(KERNEL), move(gradients)
        return tx.update({"conv": grads}, tx.init({"conv": params}), {"conv": params})[0]["conv"]

    expected = update(None, lambda x: x)
    assert not np.allclose(expected, gradients)
    torch = update(TORCH, lambda x: x.transpose(3, 2, 0, 1))
    np.testing.assert_allclose(torch.transpose(2, 3, 1, 0), expected, rtol=2e-6, atol=1e-7)
    by_path = update({"conv": TORCH}, lambda x: x.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(by_path, torch)
    layers = update(aj.MatrixAxes(), lambda x: x[0])  # 5 matrices
    each = [
        factory(**settings).update(g, (), p)[0]
        for g, p in zip(gradients[0], KERNEL[0], strict=True)
    ]
    np.testing.assert_allclose(layers, jnp.stack(each), rtol=2e-6, atol=1e-7)


def test_centralized_gradients_have_no_mean_over_inputs():
    updates, _ = aj.centralize().update({"w": KERNEL, "b": jnp.arange(6.0)}, (), None)
    np.testing.assert_allclose(updates["w"].mean((0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        updates["w"] - KERNEL, -jnp.broadcast_to(KERNEL.mean((0, 1, 2)), KERNEL.shape), atol=1e-6
    )
    np.testing.assert_array_equal(updates["b"], jnp.arange(6.0))


def test_a_unit_is_clipped_to_a_share_of_its_norm():
    params, gradients = KERNEL[0, 0] * jnp.array([[0.0, 1, 1, 10, 100, 1]]), KERNEL[1, 1]
    tx = aj.adaptive_grad_clip(0.5)
    updates, _ = tx.update(gradients, tx.init(params), params)
    limit = 0.5 * np.maximum(np.linalg.norm(params, axis=0), 1e-3)
    norms = np.linalg.norm(gradients, axis=0)
    np.testing.assert_allclose(updates, gradients * np.minimum(1, limit / norms)[None], rtol=1e-5)
    assert (norms < limit).any()
    assert (norms > limit).any()
    assert jnp.linalg.norm(updates[:, 0]) == pytest.approx(0.5e-3, rel=1e-5)
    with pytest.raises(ValueError, match="two ways to say what a unit is"):
        aj.adaptive_grad_clip(0.1, axis=0, axes=TORCH)


def test_clipping_per_layer_shares_one_norm():
    grads = {"a": jnp.full(4, 10.0), "b": jnp.full(12, 10.0), "c": jnp.full((), 0.1)}
    uniform, _ = aj.clip_per_layer(3.0).update(grads, ())
    by_size, _ = aj.clip_per_layer(3.0, uniform=False).update(grads, ())
    assert jnp.linalg.norm(uniform["a"]) == pytest.approx(3 / 3**0.5)
    assert jnp.linalg.norm(by_size["b"]) == pytest.approx(3 * (12 / 17) ** 0.5)
    assert uniform["c"] == by_size["c"] == grads["c"]


def test_block_rms():
    updates, _ = aj.clip_by_block_rms(0.5).update(
        {"a": jnp.array([3.0, -4.0]), "b": jnp.full(3, 0.1)}, ()
    )
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates["a"] ** 2)), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], jnp.full(3, 0.1))


# Hyperball


def test_hyperball_keeps_norms_and_turns_by_the_rate():
    params = {"w": KERNEL, "b": jnp.ones(6)}
    tx = aj.chain(aj.sgd(optax.linear_schedule(0.1, 0.05, 1)), aj.hyperball())
    state = tx.init(params)
    for step, rate in enumerate((0.1, 0.05)):
        grads = {"w": jax.random.normal(jax.random.key(step), KERNEL.shape), "b": jnp.ones(6)}
        updates, state = tx.update(grads, state, params)
        u = updates["w"]
        radius, size = jnp.linalg.norm(KERNEL.ravel()), jnp.linalg.norm(grads["w"].ravel())
        moved = params["w"] - rate * radius * grads["w"] / size
        expected = moved * radius / jnp.linalg.norm(moved.ravel()) - params["w"]
        np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(updates["b"], -rate, rtol=1e-6)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(jnp.linalg.norm(params["w"].ravel()), radius, rtol=1e-6)


def test_hyperball_of_outputs_of_each_layer_and_of_steps_as_they_are():
    params = KERNEL[0]
    for per, axes, norm_axes in (("output", None, (0, 1)), ("matrix", aj.MatrixAxes(), (1, 2))):
        tx = aj.chain(aj.sgd(0.3), aj.hyperball(per=per, axes=axes, scale_steps=False))
        grads = KERNEL[1]
        updates, _ = tx.update(grads, tx.init(params), params)
        radius = np.linalg.norm(params, axis=norm_axes, keepdims=True)
        moved = params - 0.3 * grads
        expected = moved * radius / np.linalg.norm(moved, axis=norm_axes, keepdims=True)
        np.testing.assert_allclose(params + updates, expected, rtol=1e-4, atol=1e-6)
    zeros = jnp.zeros((2, 2))
    updates, _ = tx.update(jnp.ones((2, 2)), tx.init(zeros), zeros)
    np.testing.assert_allclose(updates, -0.3, rtol=1e-6)
    fixed = aj.chain(aj.sgd(0.1), aj.hyperball(2.0))
    updates, _ = fixed.update(KERNEL, fixed.init(KERNEL), KERNEL)
    np.testing.assert_allclose(jnp.linalg.norm((KERNEL + updates).ravel()), 2.0, rtol=1e-6)

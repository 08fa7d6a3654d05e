"""Gradients of a batch, in parts or not, of parameters of every kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_network import BATCH, PARAMS, assert_close, mean_squared_error, run

import adaptive_jax as aj


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

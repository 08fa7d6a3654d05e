"""Optimizers whose rules see matrices, by the catalogue, in all that is built around an optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CATALOGUE
from jax.sharding import NamedSharding, PartitionSpec
from resumed_runs import bits

import adaptive_jax as aj

METHODS = sorted(name for name, each in CATALOGUE.items() if each.whole and each.rule.matrix)
PERIODS = {"preconditioner_update_probability": 1 / 3, "refresh_every": 3}
"""How each may be told to refresh what it factors every third step."""

generator = np.random.default_rng(0)
PARAMS = {
    "w": jnp.asarray(generator.normal(size=(4, 3)), jnp.float32),
    "b": jnp.asarray(generator.normal(size=3), jnp.float32),
}
BATCHES = jnp.asarray(generator.normal(size=(8, 16, 4)), jnp.float32)


def make(name, learning_rate=0.02, **settings):
    known = CATALOGUE[name].parameters
    every_third = {key: value for key, value in PERIODS.items() if key in known}
    return CATALOGUE[name].factory(learning_rate, **every_third, **settings)


def loss(params, batch):
    batch = batch.astype(params["w"].dtype)
    residual = batch @ params["w"] + params["b"][None] - jnp.sum(batch, 1, keepdims=True)
    return jnp.mean(jnp.square(residual.astype(jnp.float32)))


def trained(state, batches, step):
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


each = pytest.mark.parametrize("name", METHODS)


@pytest.mark.slow
@each
def test_a_restart_within_a_refresh_period_changes_no_bit(name, tmp_path):
    tx = aj.diagnose(make(name))
    step = aj.train_step(loss, metrics=("loss",))
    state, losses = trained(aj.TrainState.create(PARAMS, tx), BATCHES[:5], step)
    aj.save_checkpoint(tmp_path, state)
    state, more = trained(state, BATCHES[5:], step)
    assert step._jitted._cache_size() == 1
    assert more[-1] < losses[0]
    again = aj.restore_checkpoint(tmp_path, aj.TrainState.create(PARAMS, tx))
    again, _ = trained(again, BATCHES[5:], step)
    assert bits(again) == bits(state)


@pytest.mark.slow
@each
def test_weights_in_bfloat16_are_compensated(name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    step = aj.train_step(loss, metrics=("loss",))
    tx = make(name, 1e-3)
    compensated, _ = trained(aj.TrainState.create(params, aj.compensate(tx)), BATCHES[:3], step)
    plain, _ = trained(aj.TrainState.create(wide, tx), BATCHES[:3], step)
    for x, y in zip(
        jax.tree.leaves(compensated.eval_params()), jax.tree.leaves(plain.params), strict=True
    ):
        # Gradients are of rounded weights: 2⁻⁹ of them, and of the three steps.
        np.testing.assert_allclose(np.float32(x), y, atol=1e-3)
    assert compensated.params["w"].dtype == jnp.bfloat16


@pytest.mark.slow
@each
def test_compare_tunes_it(name):
    problem = aj.problems.matrix_regression(4, 3, 10.0, 10.0)
    space = {"learning_rate": aj.LogUniform(1e-2, 1e-1)}
    found = aj.compare(
        {name: (make_named(name), space)}, problem, budget=2, seeds=2, steps=20, studies=1
    )
    curves = found.finalists[problem.name][name].curves
    assert (curves[..., -1] < curves[..., 0]).all()


def make_named(name):
    def factory(learning_rate):
        return make(name, learning_rate)

    return factory


@pytest.mark.slow
@each
def test_a_sweep_is_its_runs_one_by_one(name):
    def train(learning_rate):
        tx, params = make(name, learning_rate), PARAMS

        def step(run, batch):
            params, state = run
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return (aj.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), BATCHES[:4])
        return loss(params, BATCHES[0])

    rates = np.float32([0.01, 0.1])
    found = aj.sweep(train, learning_rate=rates)
    expected = [float(jax.jit(train)(rate)) for rate in rates]
    np.testing.assert_allclose(np.ravel(found.objective), expected, rtol=1e-4)


@pytest.mark.slow
@each
def test_divided_over_devices(name, make_mesh):
    """Along rows, along columns, and over layers, as with FSDP and with tensor parallelism."""
    specs = {
        "rows": PartitionSpec("x"), "columns": PartitionSpec(None, "x"), "layers": PartitionSpec("x"),
        "b": PartitionSpec(),
    }  # fmt: skip
    # Square: of what one gradient leaves open, SOAP's basis is as rounding has it.
    shapes = {"rows": (8, 8), "columns": (8, 8), "layers": (8, 3, 3), "b": (3,)}
    params = {
        key: jnp.asarray(generator.normal(size=shape), jnp.float32) for key, shape in shapes.items()
    }
    mesh = make_mesh(8)
    where = {key: NamedSharding(mesh, spec) for key, spec in specs.items()}
    # Of the same gradient again and again, SOAP would rotate what is rounding in most coordinates.
    gradients = [
        {
            key: jnp.asarray(generator.normal(size=shape), jnp.float32)
            for key, shape in shapes.items()
        }
        for _ in range(4)
    ]
    tx = make(name)
    found = []
    for place in (lambda tree: tree, lambda tree: jax.device_put(tree, where)):
        here = place(params)
        state, update = tx.init(here), jax.jit(tx.update)
        for each in gradients:
            updates, state = update(place(each), state, here)
        found.append(updates)
    for key, spec in where.items():
        assert found[1][key].sharding.is_equivalent_to(spec, found[1][key].ndim)
        np.testing.assert_allclose(
            *(np.asarray(each[key]) for each in found), atol=1e-5, err_msg=key
        )

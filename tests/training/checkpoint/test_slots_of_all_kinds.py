"""A run that goes on from a checkpoint, of rules with slots and scalars of every kind."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumed_runs import bits

import adaptive_jax as aj


@dataclass(frozen=True)
class OfEveryKind(aj.Rule):
    """Steps that depend on where the run began, on an average, on rows of matrices and on the past."""

    start_rate: float = 0.1

    needs_params = True
    slots = {
        "start": aj.Slot("param", constant=True),
        "average": aj.Slot("param"),
        "rows": aj.Slot(
            nonnegative=True, shape=lambda shape: shape[:1] if len(shape) == 2 else None
        ),
    }
    scalars = {"rate": "start_rate", "window": (1.0, 0.5, 0.0)}
    extra_args = {"value": "number"}

    def measure(self, grad, slots, param, ctx):
        return {"away": jnp.sum(jnp.square(param - slots["start"]))}

    def advance(self, scalars, measured, ctx):
        away = jnp.sqrt(measured["away"].sum())
        window = jnp.roll(scalars["window"], 1).at[0].set(ctx.extra["value"])
        rate = 0.9 * scalars["rate"] + 0.01 * away + 0.01 * window.mean()
        return {"rate": rate, "window": window}

    def update(self, grad, slots, param, ctx):
        average = ctx.store("average", 0.9 * slots["average"] + 0.1 * param)
        rows = slots["rows"]
        if rows is not None:
            rows = ctx.store("rows", 0.9 * rows + jnp.sum(jnp.square(grad), 1))
            grad = grad / jnp.sqrt(1 + rows)[:, None]
        return -ctx.scalars["rate"] * (grad + param - average), {"average": average, "rows": rows}

    def evaluate(self, param, slots, ctx):
        return slots["average"]


@dataclass(frozen=True)
class OfEachArray(aj.Rule):
    """A step whose length is one of each array."""

    layerwise = True
    scalars = {"length": 0.1}

    def measure(self, grad, slots, param, ctx):
        return {"norm": jnp.sqrt(jnp.sum(jnp.square(grad)))}

    def advance(self, scalars, measured, ctx):
        return {"length": 0.9 * scalars["length"] + 0.1 * measured["norm"].sum()}

    def update(self, grad, slots, param, ctx):
        return ctx.scalars["length"] * grad, {}


generator = np.random.default_rng(0)
PARAMS = {
    "w": jnp.asarray(generator.normal(size=(4, 8)), jnp.float32),
    "b": jnp.asarray(generator.normal(size=8), jnp.float32),
    "none": None,
}


def loss(params, batch):
    return jnp.mean(jnp.square(batch @ params["w"] + params["b"][None]))


RUNS = {
    "plain": {},
    "int8": {"storage": aj.Blocks(min_size=0, block=4)},
    "bfloat16": {"storage": aj.BFloat16(min_size=0)},
    "accumulating": {"wrap": lambda tx: aj.multi_steps(tx, 3)},
    "compensated": {"wrap": aj.compensate, "dtype": jnp.bfloat16},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("plain", "accumulating") else [pytest.mark.slow])
        for name in RUNS
    ],
)
def test_a_restart_changes_no_bit(name, tmp_path):
    run = {"wrap": lambda tx: tx, "dtype": jnp.float32, "storage": None} | RUNS[name]
    rules = OfEachArray(), OfEveryKind(), aj.LearningRate(0.1)
    tx = run["wrap"](aj.transform(*rules, storage=run["storage"]))
    params = jax.tree.map(lambda x: x.astype(run["dtype"]), PARAMS)
    batches = [generator.normal(size=(6, 4)).astype(run["dtype"]) for _ in range(7)]
    step = aj.train_step(loss, metrics=("loss",))
    state = aj.TrainState.create(params, tx)
    for count, batch in enumerate(batches):
        if count == 4:
            aj.save_checkpoint(tmp_path, state)
        state, _ = step(state, batch)
    assert step._jitted._cache_size() == 1
    again = aj.restore_checkpoint(tmp_path, aj.TrainState.create(params, tx))
    for batch in batches[4:]:
        again, _ = step(again, batch)
    assert bits(again) == bits(state)
    assert bits(again.eval_params()) == bits(state.eval_params())
    assert jax.tree.structure(again) == jax.tree.structure(state)

"""Any optimizer without a schedule: those whose directions are signs, or of whole matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.orthogonal import orthogonalized
from reference.schedule_free import schedule_free

import adaptive_jax as aj

RATE = 0.1
PLAIN = {"b1": 0.0, "nesterov": False}
"""Without momentum, which the average is."""


def behind(direction):
    return aj.chain(direction, aj.transform(aj.rules.ScheduleFree(RATE)))


@pytest.mark.parametrize(
    "tx",
    [behind(aj.scale_by_muon(**PLAIN)), aj.schedule_free(aj.muon(RATE, **PLAIN), RATE)],
    ids=["a direction", "a whole optimizer"],
)
def test_muon_without_a_schedule(tx):
    """Behind the direction, and around a whole optimizer, which is a partition inside."""
    random = np.random.default_rng(0)
    first, gradients = random.normal(size=(6, 4)), random.normal(size=(30, 6, 4))
    gradients = gradients * 10.0 ** random.uniform(-3, 3, size=(30, 1, 1))

    def direction(g, y, step):
        return orthogonalized(g.T).T  # Muon's factor √max(1, out/in) is 1 here.

    expected, x = schedule_free(gradients, first, RATE, direction, 0.9, None, 0.0, 2.0)
    with jax.enable_x64(True):
        params = {"mlp": {"kernel": jnp.asarray(first)}}
        state = tx.init(params)
        for gradient, update in zip(gradients, expected, strict=True):
            updates, state = tx.update({"mlp": {"kernel": jnp.asarray(gradient)}}, state, params)
            np.testing.assert_allclose(updates["mlp"]["kernel"], update, rtol=0, atol=1e-12)
            params = jax.tree.map(jnp.add, params, updates)
        found = aj.eval_params(tx, params, state)["mlp"]["kernel"]
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


TREE = {"wte": (5, 4), "mlp": {"kernel": (4, 6), "bias": (6,)}}


@pytest.mark.parametrize(
    "tx",
    [
        aj.schedule_free(aj.muon(RATE, **PLAIN), RATE),
        aj.schedule_free(aj.soap(RATE, b1=0.0), RATE),
        aj.schedule_free(aj.lion(RATE, b1=0.0), RATE),
        aj.partition(
            {"matrix": behind(aj.scale_by_muon(**PLAIN)), "rest": aj.schedule_free_adamw(RATE)},
            {"wte": "rest", "mlp": {"kernel": "matrix", "bias": "rest"}},
        ),
        aj.muon(RATE, rest=aj.schedule_free_adamw(RATE)),
    ],
    ids=["muon", "soap", "lion", "both in a partition", "the rest of muon"],
)
def test_it_trains_at_a_constant_rate(tx):
    random = np.random.default_rng(1)

    def drawn(shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    params, targets = (
        jax.tree.map(drawn, TREE, is_leaf=lambda x: isinstance(x, tuple)) for _ in range(2)
    )

    def loss(params, _):
        parts = jax.tree.map(lambda x, target: jnp.sum((x - target) ** 2), params, targets)
        return sum(jax.tree.leaves(parts))

    state, first = aj.TrainState.create(params, tx), loss(params, None)
    step = aj.train_step(loss, metrics=())
    for _ in range(120):
        state, _ = step(state, ())
    assert loss(state.eval_params(), None) < 0.02 * first
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), state.params, state.eval_params())
    assert moved["wte"] > 0  # x is not y, in each group that has both.

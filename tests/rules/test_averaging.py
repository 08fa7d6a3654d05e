"""Averages of the parameters, against plain sums; where a training run keeps them; and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from tests.reference import averaging

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([2.0, -3.0])}
EVERY = {
    "average": [
        {"decay": 0.9},
        {"decay": 0.9, "bias_correction": False},
        {"decay": 0.99, "warmup": True},
    ],
    "polynomial_average": [{}, {"gamma": 2.0}],
    "tail_average": [{}, {"start": 4.0}, {"start": 30.0}],
    "latest_average": [
        {"count": 3, "every": 2},
        {"count": 1, "every": 1},
        {"count": 9, "every": 5},
    ],
}
CASES = [(name, settings) for name, every in EVERY.items() for settings in every]


def moved(tx, steps, params=PARAMS):
    """The parameters before the first step and after each, and the last state."""
    state, all_params, update = tx.init(params), [params], jax.jit(tx.update)
    for step in range(steps):
        gradients = jax.tree.map(lambda x, step=step: x + jnp.sin(step * 1.0), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        all_params.append(params)
    return all_params, state


@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_is_the_sum_that_it_says(name, settings):
    tx = aj.chain(aj.sgd(0.1), getattr(aj, name)(**settings))
    (first, *params), state = moved(tx, 11)
    found = aj.eval_params(tx, params[-1], state)
    for key in PARAMS:
        every = np.stack([np.float64(each[key]) for each in params])
        expected = getattr(averaging, name)(np.float64(first[key]), every, **settings)
        np.testing.assert_allclose(found[key], expected, rtol=2e-6)


@jax.numpy_dtype_promotion("standard")  # optax multiplies numbers by bools.
def test_lookahead_is_that_of_optax():
    tx, pair = aj.lookahead(aj.sgd(0.1, 0.9), 3, 0.4), optax.LookaheadParams.init_synced(PARAMS)
    theirs = optax.lookahead(optax.sgd(0.1, 0.9), 3, 0.4)
    params, state = moved(tx, 7)
    other, update = theirs.init(pair), jax.jit(theirs.update)
    for step in range(7):
        gradients = jax.tree.map(lambda x, step=step: x + jnp.sin(step * 1.0), pair.fast)
        updates, other = update(gradients, other, pair)
        pair = optax.apply_updates(pair, updates)
    for found, expected in (
        (params[-1], pair.fast),
        (aj.eval_params(tx, params[-1], state), pair.slow),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), found, expected
        )


@pytest.mark.parametrize(("storage", "atol"), [("bfloat16", 0.01), ("int8", 0.05)])
def test_a_stored_average_is_near(storage, atol):
    params = {"w": jnp.linspace(-1, 1, 8192)}
    for name, settings in (
        ("average", {"decay": 0.9}),
        ("latest_average", {"count": 2, "every": 3}),
    ):
        found = []
        for each in (None, storage):
            tx = aj.chain(aj.sgd(0.01), getattr(aj, name)(**settings, storage=each))
            every, state = moved(tx, 8, params)
            found.append(aj.eval_params(tx, every[-1], state)["w"])
        np.testing.assert_allclose(*found, atol=4 * atol)
        assert abs(float(jnp.mean(found[1] - found[0]))) < atol / 20


def loss(params, batch):
    return sum(jnp.sum((x - batch) ** 2) for x in jax.tree.leaves(params))


WRAPPED = {
    "alone": lambda tx: tx,
    "of optax": lambda tx: aj.chain(optax.clip(1e3), tx),
    "multi_steps": lambda tx: aj.multi_steps(tx, 2),
    "in a chain": lambda tx: aj.chain(aj.clip(1e3), aj.skip_nonfinite(tx)),
    "compensate": aj.compensate,
}


@pytest.mark.parametrize("way", WRAPPED)
def test_a_training_run_keeps_one_in_one_word(way):
    """Of the steps that are taken: half as many with two gradients for each, none that is skipped."""
    state = aj.TrainState.create(PARAMS, WRAPPED[way](aj.sgd(0.1)), average=aj.average(0.5))
    step, seen = aj.train_step(loss), [PARAMS]
    for batch in (1.0, 1.0, 1.0, 2.0, jnp.nan if way == "in a chain" else 2.0, 2.0):
        state, _ = step(state, jnp.float32(batch))
        if not np.array_equal(state.params["b"], seen[-1]["b"]):
            seen.append(jax.tree.map(jnp.copy, state.params))
    assert len(seen) - 1 == {"multi_steps": 3, "in a chain": 5}.get(way, 6)
    every = np.stack([each["w"] for each in seen[1:]])
    expected = averaging.average(seen[0]["w"], every, 0.5)
    np.testing.assert_allclose(state.eval_params()["w"], expected, rtol=1e-5)


def test_what_keeps_no_average_is_refused_by_name():
    with pytest.raises(
        TypeError, match=r"average=sgd\(.* keeps no average of the parameters: give aj.av"
    ):
        aj.TrainState.create(PARAMS, aj.adam(0.1), average=aj.sgd(0.1))
    with pytest.raises(TypeError, match=r"average=0.99 is a number: give aj.average\(0.99\)\.$"):
        aj.TrainState.create(PARAMS, aj.adam(0.1), average=0.99)
    with pytest.raises(
        ValueError, match=r"ScheduleFree\(.* and Average\(.* both evaluate with other"
    ):
        aj.TrainState.create(PARAMS, aj.schedule_free_sgd(0.1), average=aj.average(0.9))
    with pytest.raises(TypeError, match=r"params\['n'\].*int32"):
        aj.TrainState.create({"n": jnp.arange(3)}, aj.sgd(0.1), average=aj.average(0.9))
    with pytest.raises(TypeError, match=r"params\['n'\].*int32"):
        aj.average(0.9).init({"n": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"Average\(.* LearningRate\(.* leave that out"):
        aj.chain(aj.average(0.9), aj.sgd(0.1))
    hidden = optax.masked(aj.average(0.9), jax.tree.map(lambda _: True, PARAMS))
    with pytest.raises(ValueError, match=r"AverageState is the state of a rule .*lies in masked"):
        aj.eval_params(hidden, PARAMS, hidden.init(PARAMS))
    for name in ("count", "every"):
        with pytest.raises(
            ValueError, match=rf"{name}=0 in LatestAverage must be a whole number, 1"
        ):
            aj.latest_average(**{name: 0})
    with pytest.raises(
        ValueError, match="sync_period=0 in Lookahead must be a whole number, 1 or more"
    ):
        aj.lookahead(aj.sgd(0.1), 0)

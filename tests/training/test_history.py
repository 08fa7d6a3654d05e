"""The metrics of all steps, on the host."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import BATCH, FIT_STEP, create

import adaptive_jax as aj


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


def test_histories_of_a_run_and_of_its_continuation_are_put_together():
    first, second = aj.training.History(loss=np.ones(2)), aj.training.History(loss=np.zeros(3))
    first.interrupted = True
    both = jax.tree.map(lambda *parts: np.concatenate(parts), first, second)
    assert both["loss"].shape == (5,)

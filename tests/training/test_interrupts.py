"""Ctrl-C, once, twice and three times."""

from __future__ import annotations

import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import BATCH, FIT_STEP, assert_close, create, run

import adaptive_jax as aj


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

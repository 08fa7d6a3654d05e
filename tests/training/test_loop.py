"""The loop around the step, and how it ends."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import BATCH, FIT_STEP, assert_close, create, mean_squared_error, run

import adaptive_jax as aj


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


class Rows(NamedTuple):
    inputs: Any
    targets: Any


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
        (
            lambda s: aj.fit(s, FIT_STEP, (BATCH["inputs"], BATCH["targets"])),
            r"\(float32\[16, 5\], float32\[16, 1\]\), which looks like one batch of 16 rows: .*\[batch\]",
        ),
        (
            lambda s: aj.fit(s, FIT_STEP, Rows(BATCH["inputs"], BATCH["inputs"])),
            "looks like one batch",
        ),
        (lambda s: aj.fit(s, FIT_STEP, "train.npz"), "batches is a str"),
        (lambda s: aj.fit(s, FIT_STEP, [BATCH], callback=3), "callback=3 must be a function"),
    ],
    ids=range(14),
)
def test_what_fit_cannot_take(call, message):
    state = create()
    with pytest.raises(TypeError, match=message):
        call(state)
    assert FIT_STEP(state, BATCH)[0].step == 1


def test_a_tuple_of_batches():
    """That are alike, or in a list, as an error about others says."""
    step = aj.train_step(lambda params, batch: jnp.mean(params * batch))
    rows, narrow = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    for batches in ((rows, rows), [rows, narrow], (rows, narrow[:2])):
        state, _ = aj.fit(aj.TrainState.create(jnp.ones(()), aj.sgd(0.1)), step, batches)
        assert state.step == 2


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


def spoilt(params, batch):
    return jnp.sum(params["w"] * batch)


def spoilt_state(max_consecutive=None, **options):
    tx = aj.chain(aj.skip_nonfinite(aj.sgd(0.1), max_consecutive))
    return aj.TrainState.create({"w": jnp.ones(2)}, tx, **options)


def test_skipped_counts_what_the_optimizer_skipped():
    batches = [1.0, jnp.nan, 1.0, jnp.inf, jnp.nan]
    for options in ({}, {"skip_nonfinite": True}):
        step = aj.train_step(spoilt, metrics=("loss", "skipped"), **options)
        state, history = aj.fit(spoilt_state(), step, batches)
        assert history["skipped"].tolist() == [0, 1, 1, 2, 3]
        assert history["skipped"].dtype == np.int32
        # What the step skips itself, the optimizer does not see.
        assert state.skipped == (3 if options else 0)
    state = spoilt_state().replace(skipped=jnp.int32(7))
    state, history = aj.fit(state, aj.train_step(spoilt, metrics=("skipped",)), batches)
    assert (history["skipped"][-1], state.skipped) == (10, 7)
    inner = aj.skip_nonfinite(aj.skip_nonfinite(aj.sgd(0.1)))
    state = aj.TrainState.create({"w": jnp.ones(2)}, inner).replace(skipped=None)
    _, history = aj.fit(state, aj.train_step(spoilt, metrics=("skipped",)), batches)
    assert history["skipped"].tolist() == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("count", [7, 200])
def test_a_run_that_its_optimizer_has_stopped_ends(count):
    step = aj.train_step(spoilt, metrics=("loss", "skipped"))
    batches = [1.0, 1.0, *[jnp.nan] * count]
    message = "3 steps in a row .* began in step 3, where the gradient at .'w'. was not finite"
    with pytest.raises(FloatingPointError, match=message) as caught:
        aj.fit(spoilt_state(3), step, iter(batches))
    done = min(2 + count, 64)
    assert caught.value.state.step == done
    assert len(caught.value.history["loss"]) == done
    np.testing.assert_allclose(caught.value.state.params["w"], 0.8, rtol=1e-6)
    with pytest.raises(FloatingPointError, match="began in step 3"):
        aj.raise_if_stopped(caught.value.state)
    # Without a limit it goes on, and so does a loop that Ctrl-C ends.
    assert aj.fit(spoilt_state(), step, batches)[0].step == 2 + count


def test_a_run_that_was_stopped_goes_on_as_the_error_says():
    step = aj.train_step(spoilt)
    with pytest.raises(FloatingPointError) as caught:
        aj.fit(spoilt_state(1), step, [jnp.nan])
    with pytest.raises(
        FloatingPointError, match=r"It stays stopped: .* tx.init\(params\)"
    ) as again:
        aj.fit(caught.value.state, step, [1.0])
    state = again.value.state
    state = state.replace(opt_state=state.tx.init(state.params))
    state, _ = aj.fit(state, step, [1.0, 1.0])
    np.testing.assert_allclose(state.params["w"], 0.8, rtol=1e-6)
    aj.raise_if_stopped(state)
    aj.raise_if_stopped(create())  # Where there is none, nothing has stopped.


def test_whether_it_has_stopped_is_not_waited_for(monkeypatch):
    """It is looked at when as many steps have been taken since as the metrics need to arrive."""
    from adaptive_jax.training import stopped

    judged, usual = [], stopped._is_over
    monkeypatch.setattr(stopped, "_is_over", lambda x: (judged.extend(x), usual(x))[1])
    step, steps = aj.train_step(spoilt, metrics=()), []
    aj.fit(spoilt_state(3), step, [1.0] * 100, callback=lambda state, _: steps.append(len(judged)))
    assert [steps.index(number) + 1 for number in (1, 2)] == [64, 96]
    judged.clear()
    plain = aj.TrainState.create({"w": jnp.ones(2)}, aj.sgd(0.1))
    aj.fit(plain, step, [1.0] * 100)
    assert not judged

"""What callbacks remember goes on with a run that is restored."""

import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumed_runs import bits

import adaptive_jax as aj
from adaptive_jax.training.checkpoint import folder as folders

pytest.importorskip("orbax.checkpoint")

STEP = aj.train_step(lambda params, batch, rng: jnp.sum((params["w"] - batch) ** 2))
BEST_AT = 8
"""After which step the evaluation is best."""


def created(size=3):
    params = {"w": jnp.zeros(size), "none": jnp.zeros((0, 2))}
    return aj.TrainState.create(params, aj.adam(0.1), rng=jax.random.key(0))


ROWS = list(np.random.default_rng(0).normal(size=(39, 3)).astype(np.float32))


def batches(first=0, *, per_epoch=False, fails_after=None):
    """The rows, of epochs of three or all."""

    def rows(first, last):
        for row in range(first, last):
            if row == fails_after:
                raise OSError("the disk is gone")
            yield ROWS[row]

    if per_epoch:
        return lambda epoch: rows(first + 3 * epoch, first + 3 * epoch + 3)
    return rows(first, 39)


def callbacks(patience=3):
    return [
        aj.EarlyStopping(patience=patience),
        aj.KeepBest(whole_state=True),
        aj.KeepBest("eval_negative", maximize=True),
    ]


def evaluate(state):
    loss = jnp.abs(state.step.astype(jnp.float32) - BEST_AT)
    return {"loss": loss, "negative": -loss}


def fitted(state, folder, given, batches, **options):
    options = {"evaluate": evaluate, "evaluate_every": 2, **options}
    checkpoints = aj.Checkpoints(folder, every=3)
    return aj.fit(state, STEP, batches, callback=given, checkpoints=checkpoints, **options)


def restored(folder, monkeypatch):
    """As in a process that has saved nothing."""
    monkeypatch.setattr(folders, "_restored", set())
    return aj.restore_checkpoint(folder, created())


def outcome(state, history, given):
    """All that a run comes to, bit by bit."""
    stopping, whole, best = given
    numbers = [stopping.best, stopping.waited, best.step, best.value, whole.step, whole.value]
    kept = bits([whole.state, best.params, state])
    return kept, numbers, repr(whole.state.tx), history.stopped_by


@pytest.mark.parametrize(
    ("per_epoch", "first"), [(False, 10), (False, 9), (True, 9)], ids=["steps", "older", "epochs"]
)
def test_a_run_that_is_restored_stops_where_it_would_have(per_epoch, first, tmp_path, monkeypatch):
    """The best is before the interruption, and the patience is used up on both sides of it.

    An error in the step after the tenth saves that; where it is gone, step 9 is the newest: a checkpoint
    was due at the end of an epoch, and has the evaluation of it.
    """

    def run(state, folder, given, **options):
        done = int(state.step)
        if per_epoch:
            options |= {"evaluate_every": None, "epochs": 13 - done // 3}
        rows = batches(done, per_epoch=per_epoch, fails_after=options.pop("fails_after", None))
        return fitted(state, tmp_path / folder, given, rows, **options)

    given = callbacks()
    state, history = run(created(), "whole", given)
    expected = outcome(state, history, given)
    assert state.step < 30
    assert history.stopped_by.endswith("for 3 evaluations")

    with pytest.raises(OSError, match="the disk is gone"):
        run(created(), "cut", callbacks(), fails_after=10)
    if first == 9:
        shutil.rmtree(tmp_path / "cut" / "10")
    start, given = restored(tmp_path / "cut", monkeypatch), callbacks()
    assert start.step == first
    assert outcome(*run(start, "cut", given), given) == expected

    # A script that is started again when it has stopped.
    start, given = restored(tmp_path / "cut", monkeypatch), callbacks()
    state, history = run(start, "cut", given)
    assert outcome(state, history, given) == expected
    assert not history
    # With more patience it goes on, and waits as much longer.
    start, given = restored(tmp_path / "cut", monkeypatch), callbacks(patience=5)
    further, _ = run(start, "cut", given)
    assert given[0].waited == 5
    assert further.step == state.step + 2 * (3 if per_epoch else 2)


def test_in_one_process_a_new_callback_starts_anew(tmp_path):
    """A second part of a script, from a checkpoint that it saved itself, has its own patience."""
    state, _ = fitted(created(), tmp_path, callbacks(), batches())
    first, given = int(state.step), callbacks()
    again, _ = fitted(state, tmp_path, given, batches(first))
    assert again.step > first
    assert given[0].waited == 3


def test_callbacks_of_another_run_start_anew(tmp_path):
    fitted(created(), tmp_path / "run", callbacks(), ROWS[:8])
    state = aj.restore_checkpoint(tmp_path / "run", created())

    def refit(state, given):
        fitted(state, tmp_path / "run", given, [])
        return given

    with pytest.warns(UserWarning, match="starts anew.*maximize was False"):
        assert refit(state, [aj.EarlyStopping(maximize=True)])[0].waited == 0
    with pytest.warns(UserWarning, match=r"\['state'\].step was missing, and is int32\[\]"):
        best = refit(state, [aj.KeepBest("eval_negative", maximize=True, whole_state=True)])[0]
    assert best.params is None
    wide = created(size=4).replace(step=state.step)
    with pytest.warns(
        UserWarning, match=r"\['params'\]\['w'\] was float32\[3\], and is float32\[4\]"
    ):
        refit(wide, [aj.KeepBest("eval_negative", maximize=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = refit(state, [aj.EarlyStopping("eval_negative", maximize=True), aj.KeepBest()])
    assert given[0].waited == 0  # There was none of this number.
    assert given[1].step == 8


class Own(aj.Callback):
    """Remembers of all kinds, and whether it was restored."""

    def __init__(self, memory):
        self.memory, self.got = memory, None

    def to_save(self):
        return self.memory

    def restore(self, saved, state):
        self.got = saved, int(state.step)


def test_callbacks_of_ones_own(tmp_path):
    memory = {
        "number": 1 / 3, "big": 2**60, "text": "so", "flag": True, "none": np.zeros((0, 2)),
        "host": np.arange(3.0) / 3, "device": jnp.arange(3.0) / 3, "scalar": np.float32(0.1),
    }  # fmt: skip
    aj.fit(
        created(), STEP, ROWS[:2], callback=[Own(memory), Own({}), Own({"x": 2})],
        checkpoints=aj.Checkpoints(tmp_path),
    )  # fmt: skip
    state = aj.restore_checkpoint(tmp_path, created())
    given = [Own({}), Own({}), Own({})]
    aj.fit(state, STEP, [], callback=given, checkpoints=aj.Checkpoints(tmp_path))
    found, step = given[0].got
    assert step == 2
    assert {name: type(x) for name, x in found.items()} == {
        name: float if name == "scalar" else jax.Array if name == "device" else type(x)
        for name, x in memory.items()
    } | {"device": type(memory["device"])}
    for name, x in memory.items():
        np.testing.assert_array_equal(found[name], x)
        assert np.asarray(found[name]).dtype == np.asarray(x).dtype or name == "scalar"
    assert given[1].got is None
    assert given[2].got == ({"x": 2}, 2)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ([1], r"Own.to_save\(\) returned \[1\] of type list: it must return a dict"),
        (
            {"x": [1]},
            r"returned \[1\] of type list for 'x': a checkpoint keeps numbers, strings and",
        ),
        ({3: 1}, "of type int for 3: .* each under a string"),
        ({"x": jax.random.key(0)}, "for 'x': a checkpoint keeps"),
        (
            {"x": np.ma.array([1, 2], mask=[0, 1])},
            "of type MaskedArray for 'x': a checkpoint keeps",
        ),
        (
            {"x": np.array(["a"])},
            "for 'x': a checkpoint keeps numbers, strings and arrays of numbers",
        ),
    ],
    ids=["no dict", "a list", "no name", "a key", "a masked array", "an array of strings"],
)
def test_a_memory_that_cannot_be_saved(memory, message, tmp_path):
    with pytest.raises(TypeError, match=message) as caught:
        aj.fit(
            created(), STEP, ROWS[:2], callback=Own(memory),
            checkpoints=aj.Checkpoints(tmp_path),
        )  # fmt: skip
    assert caught.value.state.step == 2


def test_an_array_that_a_step_wrote_over_is_no_memory(tmp_path):
    class Keeping(aj.Callback):
        def after_step(self, state, metrics):
            self.first = getattr(self, "first", state.params["w"])

        def to_save(self):
            return {"first": self.first}

    with pytest.raises(
        ValueError, match=r"Keeping.to_save\(\) .* deleted for 'first': .* jnp.copy"
    ):
        aj.fit(created(), STEP, ROWS[:2], callback=Keeping(), checkpoints=aj.Checkpoints(tmp_path))

"""What `fit` saves on its way, in the background."""

import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from adaptive_jax.training.checkpoint import clock

pytest.importorskip("orbax.checkpoint")

STEP = aj.train_step(lambda params, batch: jnp.mean((params["w"] - batch) ** 2))


def created():
    return aj.TrainState.create({"w": jnp.zeros(100_000)}, aj.adam(0.1))


def batches(first=0, count=10):
    return np.random.default_rng(0).normal(size=(first + count, 100_000)).astype(np.float32)[first:]


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_every_so_many_steps_and_the_last(tmp_path):
    """While the steps after it write over the arrays; a run that goes on saves at the same steps."""
    checkpoints = aj.Checkpoints(tmp_path / "run", every=4, keep=2)
    state, _ = aj.fit(created(), STEP, batches(), checkpoints=checkpoints)
    assert steps_in(tmp_path / "run") == [8, 10]
    halfway, _ = aj.fit(created(), STEP, batches(count=8))
    again = aj.restore_checkpoint(tmp_path / "run", created(), step=8)
    assert bits(again) == bits(halfway)
    assert bits(aj.restore_checkpoint(tmp_path / "run", created())) == bits(state)

    checkpoints = aj.Checkpoints(tmp_path / "parts", every=4)
    part, _ = aj.fit(created(), STEP, batches(count=5), checkpoints=checkpoints)
    part, _ = aj.fit(part, STEP, batches(5, 4), checkpoints=checkpoints)
    assert steps_in(tmp_path / "parts") == [4, 5, 8, 9]
    aj.fit(part, STEP, [], checkpoints=checkpoints)  # The last step is there.
    assert repr(checkpoints).endswith("parts', every=4, minutes=None, keep=None, background=True)")


def test_every_so_many_minutes(tmp_path, monkeypatch):
    now = 0.0

    def slow_batches():
        nonlocal now
        for batch in batches(count=8):
            now += 15.0
            yield batch

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now))
    aj.fit(created(), STEP, slow_batches(), checkpoints=aj.Checkpoints(tmp_path, minutes=0.7))
    assert steps_in(tmp_path) == [3, 6, 8]  # After 45 seconds, 90, and the last.


def test_after_ctrl_c(tmp_path):
    def interrupt(state, metrics):
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoints = aj.Checkpoints(tmp_path)
    state, history = aj.fit(created(), STEP, batches(), callback=interrupt, checkpoints=checkpoints)
    assert history.interrupted
    assert steps_in(tmp_path) == [int(state.step)]


@pytest.mark.parametrize("every", [4, 3])
@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_an_error_saves_what_was_reached(tmp_path, every, error):
    """Once, if it was saved as it was reached."""

    def failing():
        yield from batches(count=4)
        raise error("no more")

    with pytest.raises(error, match="no more") as caught:
        aj.fit(created(), STEP, failing(), checkpoints=aj.Checkpoints(tmp_path, every=every))
    assert steps_in(tmp_path) == ([4] if every == 4 else [3, 4])
    assert bits(aj.restore_checkpoint(tmp_path, created())) == bits(caught.value.state)
    is_told = f"and in {tmp_path / '4'}" in caught.value.__notes__[0]
    assert is_told == (every == 3)


def test_what_an_error_does_not_save(tmp_path):
    """Nothing where no step was taken, and no state that could not go on."""

    def callback(state, metrics):
        if state.step == 5:
            aj.raise_if_stopped(state)

    tx = aj.skip_nonfinite(aj.sgd(0.1), max_consecutive=2)
    given = [batches(count=1)[0]] * 3 + [np.full(100_000, np.nan, np.float32)] * 9
    for options in ({}, {"callback": callback}):
        folder = tmp_path / f"{len(options)}"
        checkpoints = aj.Checkpoints(folder, every=3, keep=1)
        state = aj.TrainState.create({"w": jnp.zeros(100_000)}, tx)
        step = aj.train_step(lambda params, batch: jnp.mean((params["w"] - batch) ** 2))
        with pytest.raises(FloatingPointError, match="began in step 4"):
            aj.fit(state, step, given[:8], checkpoints=checkpoints, **options)
        assert steps_in(folder) == [3]
    folder = tmp_path / "none"
    with pytest.raises(ZeroDivisionError):
        aj.fit(created(), STEP, (1 / 0 for _ in range(3)), checkpoints=aj.Checkpoints(folder))
    assert not folder.exists()


def test_in_a_loop_of_ones_own(tmp_path):
    state, expected = created(), {}
    with aj.Checkpoints(tmp_path) as checkpoints:
        for batch in batches(count=3):
            state, _ = STEP(state, batch)
            expected[int(state.step)] = bits(state)
            checkpoints.save(state)
        with pytest.raises(ValueError, match="3 is there already"):
            checkpoints.save(state)
    for step, each in expected.items():
        assert bits(aj.restore_checkpoint(tmp_path, created(), step=step)) == each


def test_what_is_refused(tmp_path):
    aj.save_checkpoint(tmp_path, created(), step=7)
    start = created()
    with pytest.raises(
        ValueError, match=r"has the later steps \[7\], and the state is of step 0\. Go on from the"
    ):
        aj.fit(start, STEP, batches(), checkpoints=aj.Checkpoints(tmp_path))
    assert not start.params["w"].is_deleted()
    with pytest.raises(TypeError, match=r"checkpoints='run' must be such as aj.Checkpoints\("):
        aj.fit(start, STEP, batches(), checkpoints="run")
    with pytest.raises(TypeError, match="directory=3 is no path"):
        aj.Checkpoints(3)
    for wrong in ({"every": 0}, {"every": 1.5}, {"keep": 0}, {"minutes": -1}, {"minutes": "1"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* must be"):
            aj.Checkpoints(tmp_path, **wrong)


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    state, _ = aj.fit(created(), STEP, batches(count=1), checkpoints=aj.Checkpoints("~/run"))
    assert steps_in(tmp_path / "run") == [1]
    assert bits(aj.restore_checkpoint("~/run", created())) == bits(state)

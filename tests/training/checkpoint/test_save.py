"""Checkpoints of a run: which steps there are, and what is saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumed_runs import SMALL, SMALL_STEP

import adaptive_jax as aj


def test_which_checkpoint(tmp_path):
    for step in (1, 2, 3):
        aj.save_checkpoint(tmp_path, {"w": jnp.full(2, float(step))}, step=step, keep=2)
    like = {"w": jnp.zeros(2)}
    assert aj.restore_checkpoint(tmp_path, like)["w"][0] == 3
    assert aj.restore_checkpoint(tmp_path, like, step=2)["w"][0] == 2
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 1; .*\[2, 3\]"):
        aj.restore_checkpoint(tmp_path, like, step=1)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        aj.restore_checkpoint(tmp_path / "none", like)
    with pytest.raises(ValueError, match="3 is there already"):
        aj.save_checkpoint(tmp_path, like, step=3)
    with pytest.raises(ValueError, match="step is missing"):
        aj.save_checkpoint(tmp_path, like)
    for step in (np.int64(2), jnp.int32(2)):
        assert aj.restore_checkpoint(tmp_path, like, step=step)["w"][0] == 2
        with pytest.raises(ValueError, match="2 is there already"):
            aj.save_checkpoint(tmp_path, like, step=step, keep=np.int32(2))
    for step in (True, 1.5, "2", -1):
        with pytest.raises(ValueError, match=r"step=.* must be a whole number, 0 or more"):
            aj.save_checkpoint(tmp_path, like, step=step)
        with pytest.raises(ValueError, match=r"step=.* must be a whole number, 0 or more"):
            aj.restore_checkpoint(tmp_path, like, step=step)
    for keep in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"keep=.* must be a whole number, 1 or more"):
            aj.save_checkpoint(tmp_path, like, step=9, keep=keep)


@pytest.mark.slow
def test_eight_times_killed(tmp_path):
    """At random moments, many of them while it saves. The end is that of the undisturbed run."""
    steps, moments = 80, random.Random(0)
    script = str(Path(__file__).with_name("checkpointed_run.py"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(directory):
        command = [sys.executable, script, str(directory), str(steps)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def finish(directory):
        process = start(directory)
        process.communicate(timeout=300)
        assert process.returncode == 0
        return np.load(directory / "end.npy")

    disturbed, alone = tmp_path / "disturbed", tmp_path / "alone"
    disturbed.mkdir()
    alone.mkdir()
    began_at = []
    for _ in range(8):
        with start(disturbed) as process:
            lines = iter(process.stdout.readline, "")
            began_at.append(int(next(lines)))
            for _ in range(moments.randrange(8)):
                next(lines)
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
    assert not (disturbed / "end.npy").exists()
    assert began_at == sorted(began_at)
    assert began_at[-1] > began_at[0]
    np.testing.assert_array_equal(finish(disturbed), finish(alone))


def test_a_checkpoint_that_would_not_be_kept_is_refused(tmp_path):
    """A second run in the folder of a longer one."""
    state = aj.TrainState.create(SMALL, aj.adam(0.1))
    for step in (15, 20):
        aj.save_checkpoint(tmp_path, state, step=step, keep=2)
    with pytest.raises(ValueError, match=r"later steps \[15, 20\], and keep=2 would delete step 5"):
        aj.save_checkpoint(tmp_path, state, step=5, keep=2)
    aj.save_checkpoint(tmp_path, state, step=5, keep=3)


def test_what_cannot_be_saved_is_named(tmp_path):
    state = aj.TrainState.create(SMALL, aj.adam(0.1))
    with pytest.raises(TypeError, match=r"the order is save_checkpoint\(directory, state\)"):
        aj.save_checkpoint(state, tmp_path)
    with pytest.raises(TypeError, match=r"the order is restore_checkpoint\(directory, state\)"):
        aj.restore_checkpoint(state, tmp_path)
    many = jax.vmap(lambda rate: aj.TrainState.create(SMALL, aj.adam(rate)))(jnp.ones(2))
    with pytest.raises(ValueError, match="one of many runs, whose steps are"):
        aj.save_checkpoint(tmp_path, many)
    aj.save_checkpoint(tmp_path, many, step=4)
    SMALL_STEP(state, None)
    with pytest.raises(ValueError, match="is deleted: a step wrote over this state"):
        aj.save_checkpoint(tmp_path, state, step=5)

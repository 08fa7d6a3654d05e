"""A run that goes on from a checkpoint is the run that was never stopped."""

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
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adaptive_jax as aj

PARAMS = {
    "w": jnp.arange(1.0, 33.0).reshape(8, 4) / 32,
    "low": jnp.ones(3, jnp.bfloat16),
    "empty": jnp.ones((0, 2)),
    "a/b": [jnp.ones(2), None],
}
RUNS = {
    "schedule": lambda: aj.adam(optax.linear_schedule(0.1, 0.0, 10)),
    "accumulating": lambda: aj.multi_steps(aj.adam(0.1), 3),
    "compensated": lambda: aj.compensate(aj.sgd(0.1, momentum=0.9)),
    "clipped": lambda: aj.chain(aj.clip_by_global_norm(0.1), aj.rmsprop(0.1, centered=True)),
    "float": lambda: aj.adam(0.1, storage={"mu": aj.Float(jnp.bfloat16)}),
    "bfloat16": lambda: aj.sgd(0.1, momentum=0.9, storage=aj.BFloat16(min_size=0)),
    "int8": lambda: aj.adam(0.1, storage=aj.Blocks(min_size=0)),
    "int16": lambda: aj.multi_steps(aj.rmsprop(0.1, storage=aj.Blocks(min_size=0, bits=16)), 2),
    "factored": lambda: aj.adam(0.1, storage={"nu": aj.Factored(min_size=2)}),
    "24 bits": lambda: aj.compensate(aj.adam(0.1, storage=aj.Blocks(min_size=0)), "int8"),
    "optax": lambda: optax.adam(0.1),
}
DEFAULT = ["schedule", "accumulating", "int8", "24 bits", "optax"]


def loss(params, batch, rng):
    noisy = [x.astype(jnp.float32) * jax.random.normal(rng) for x in jax.tree.leaves(params)]
    return batch * sum(jnp.sum(jnp.square(x)) for x in noisy)


def create(tx, params=PARAMS, **settings):
    return aj.TrainState.create(params, tx, rng=jax.random.key(1), **settings)


def bits(tree):
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x).tobytes() for x in leaves]


def is_key(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@jax.numpy_dtype_promotion("standard")  # For optax.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in DEFAULT else [pytest.mark.slow]) for name in RUNS],
)
def test_a_restart_changes_no_bit(name, tmp_path):
    tx = RUNS[name]()
    step = aj.train_step(loss, rounding="stochastic")
    state = create(tx, loss_scale=aj.LossScale())
    for count in range(7):
        if count == 4:
            aj.save_checkpoint(tmp_path, state)
        state, _ = step(state, 0.1)
    again = aj.restore_checkpoint(tmp_path, create(tx, loss_scale=aj.LossScale(2.0)))
    for _ in range(3):
        again, _ = step(again, 0.1)
    assert bits(again) == bits(state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert repr(again.tx) == repr(state.tx)


def test_hyperparameters_are_those_that_were_saved(tmp_path):
    aj.save_checkpoint(tmp_path, create(aj.adam(0.123456789)))
    again = aj.restore_checkpoint(tmp_path, create(aj.adam(0.5)))
    assert jax.tree.leaves(again.tx) == jax.tree.leaves(aj.adam(0.123456789))


@pytest.mark.parametrize("storage", [None, aj.Blocks(min_size=0)])
def test_onto_another_sharding_and_from_shapes_alone(tmp_path, storage):
    tx = aj.adam(0.1, storage=storage)
    state, _ = aj.train_step(loss)(create(tx), 0.1)
    aj.save_checkpoint(tmp_path, state)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    split = {**PARAMS, "w": jax.device_put(PARAMS["w"], rows)}
    again = aj.restore_checkpoint(tmp_path, create(tx, split))
    for array in (again.params["w"], jax.tree.leaves(again.opt_state[0].mu["w"])[0]):
        assert array.sharding.is_equivalent_to(rows, 2)
    assert bits(again) == bits(state)
    shapes = jax.eval_shape(lambda: create(tx))
    again = aj.restore_checkpoint(tmp_path, shapes)
    assert bits(again.params) == bits(state.params)
    assert bits(again.opt_state) == bits(state.opt_state)


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


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (aj.adamax(0.1), PARAMS, r"made of Adam\(.*this one is of AdaMax"),
        (
            aj.nadam(0.1),
            PARAMS,
            r"made of Adam\(nesterov=False.*this one is of Adam\(nesterov=True",
        ),
        (aj.sgd(0.1), PARAMS, r"made of Adam\("),
        (
            aj.adam(0.1),
            {**PARAMS, "w": jnp.ones((4, 8))},
            r"\.params\['w'\] is float32\[8, 4\] in the checkpoint and float32\[4, 8\] in the state",
        ),
        (
            aj.adam(0.1, mu_dtype=jnp.bfloat16),
            PARAMS,
            r"mu\['w'\] is float32\[8, 4\] in the checkpoint and bfloat16\[8, 4\] in the state",
        ),
        (
            aj.adam(0.1, storage=aj.Blocks(min_size=0)),
            PARAMS,
            r"mu\['a/b'\]\[0\]\.codes is missing in the checkpoint and int8\[2\] in the state",
        ),
        (
            aj.adam(0.1),
            {**PARAMS, "new": jnp.ones(1)},
            r"\['new'\] is missing in the checkpoint and float32\[1\] in the state",
        ),
    ],
    ids=["rule", "option", "state", "shape", "dtype", "storage", "entry"],
)
def test_what_does_not_fit_is_named(tx, params, message, tmp_path):
    aj.save_checkpoint(tmp_path, create(aj.adam(0.1)))
    with pytest.raises(ValueError, match=message):
        aj.restore_checkpoint(tmp_path, create(tx, params))


@pytest.mark.slow
def test_twenty_times_killed(tmp_path):
    """At random moments, many of them while it saves. The end is that of the undisturbed run."""
    steps, moments = 160, random.Random(0)
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
    for _ in range(20):
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

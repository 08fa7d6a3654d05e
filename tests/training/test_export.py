"""Steps and updates, written by `jax.export` and read again."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import assert_close

import adaptive_jax as aj


@pytest.mark.parametrize(
    "tx",
    [
        aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(0.01, mask={"w": True, "b": False})),
        aj.skip_nonfinite(aj.multi_steps(aj.adam(0.01, storage="int8"), 2)),
        aj.compensate(aj.diagnose(aj.adam(0.01, storage={"nu": "factored", "mu": "bfloat16"}))),
        pytest.param(
            aj.chain(aj.monitor({"norm": aj.global_norm}), aj.sgd(0.01, momentum=0.9)),
            marks=pytest.mark.slow,
        ),
        pytest.param(aj.interop.torch.adam(0.01, (0.9, 0.99)), marks=pytest.mark.slow),
        pytest.param(
            aj.chain(
                aj.masked(aj.clip(1.0), {"w": True, "b": False}),
                aj.partition({"a": aj.adam(0.01), "b": None}, [("w", "a"), (".*", "b")]),
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=range(6),
)
def test_a_step_is_exported(tx):
    """The state goes in and comes out as a TrainState, from a file."""

    def loss(params, batch, rng):
        sums = jnp.sum(jnp.square(params["w"]).astype(jnp.float32))
        return sums * jax.random.uniform(rng) * batch

    params = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(3)}
    step = aj.train_step(loss)
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0), loss_scale=aj.LossScale())
    data = jax.export.export(jax.jit(step))(state, jnp.float32(0.1)).serialize()
    expected, metrics = jax.jit(step)(state, jnp.float32(0.1))
    got, again = jax.export.deserialize(data).call(state, jnp.float32(0.1))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert repr(got.tx) == repr(expected.tx)
    got, expected = (each.replace(rng=None) for each in (got, expected))
    assert_close((got, again), (expected, metrics), 0)


def test_what_cannot_be_exported_is_named():
    def local(count):
        return 2

    step = aj.train_step(lambda params, batch: jnp.sum(params), metrics=("loss",))
    for tx, name in (
        (optax.sgd(0.1), "chain of optax"),
        (aj.multi_steps(aj.sgd(0.1), local), "loc"),
    ):
        state = aj.TrainState.create(jnp.ones(3), tx)
        exported = jax.export.export(jax.jit(step))(state, 1.0)
        with pytest.raises(ValueError, match=rf"{name}.* in it cannot be written.*top level"):
            exported.serialize()
        # The way that the error names.
        leaves, treedef = jax.tree.flatten(state)
        leaves = list(map(jnp.asarray, leaves))

        def on_leaves(leaves, treedef=treedef):
            return jax.tree.leaves(step(treedef.unflatten(leaves), 1.0)[0])

        data = jax.export.export(jax.jit(on_leaves))(leaves).serialize()
        new = treedef.unflatten(jax.export.deserialize(data).call(leaves))
        assert_close(new.params, step(state, 1.0)[0].params)


EXPORT = """
import sys, jax, jax.numpy as jnp, optax
if sys.argv[1] == "registered":
    jax.export.register_namedtuple_serialization(optax.ScaleByAdamState, serialized_name="theirs")
    jax.export.register_namedtuple_serialization(optax.EmptyState, serialized_name="empty")
import adaptive_jax as aj
tx, params = aj.adam(0.1, storage="int8"), jnp.ones((64, 128))
state = tx.init(params)
update = jax.jit(lambda tx, params, state: tx.update(params, state, params))
if sys.argv[2] == "write":
    data = jax.export.export(update)(tx, params, state).serialize()
    open(sys.argv[3], "wb").write(data)
else:
    exported = jax.export.deserialize(bytearray(open(sys.argv[3], "rb").read()))
    updates, state = exported.call(tx, params, state)
    assert state[0].count == 1 and state[0].mu.codes.dtype == jnp.int8
"""


@pytest.mark.slow
@pytest.mark.parametrize("registered", ["registered", "new"])
def test_another_process_reads_what_was_exported(registered, tmp_path):
    for what in ("write", "read"):
        arguments = [sys.executable, "-c", EXPORT, registered, what, str(tmp_path / "step")]
        subprocess.run(arguments, check=True)


def test_a_step_with_a_schedule_is_exported():
    pytest.importorskip("flatbuffers")
    tx = aj.adam(module_level_schedule)
    params = jnp.ones(2)
    update = jax.jit(lambda tx, params, state: tx.update(params, state, params))
    exported = jax.export.export(update)(tx, params, tx.init(params))
    again = jax.export.deserialize(exported.serialize())
    updates, _ = again.call(tx, params, tx.init(params))
    np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


def module_level_schedule(count):
    return 0.1 / (1 + count.astype(jnp.float32))

"""A run that goes on from a checkpoint is the run that was never stopped."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saved_runs
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax._core.transformation import member
from adaptive_jax.training import origin
from adaptive_jax.training.checkpoint import origins

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
    step = aj.train_step(loss, metrics=("loss",))
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
    again = aj.restore_checkpoint(tmp_path, create(aj.adam(0.5)), hyperparameters="saved")
    assert jax.tree.leaves(again.tx) == jax.tree.leaves(aj.adam(0.123456789))


SMALL = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
COSINE = optax.cosine_decay_schedule(0.1, 100)
STEPS = 3


def small_loss(params, batch):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


SMALL_STEP = aj.train_step(small_loss, metrics=("loss",))


def resumed(directory, old, new, steps=STEPS, **settings):
    """A state of the new optimizer that goes on after a few steps of the old one, and that one's."""
    with jax.numpy_dtype_promotion("standard"):  # For optax.
        state = aj.TrainState.create(SMALL, old)
        for _ in range(steps):
            state, _ = SMALL_STEP(state, None)
        aj.save_checkpoint(directory, state)
        again = aj.restore_checkpoint(directory, aj.TrainState.create(SMALL, new), **settings)
    return state, again


def counts(tree):
    with_path = jax.tree_util.tree_leaves_with_path(tree)
    return [int(leaf) for path, leaf in with_path if str(path[-1]) == ".count"]


def goes_on(state):
    """The optimizer takes its state."""
    with jax.numpy_dtype_promotion("standard"):
        _, new = jax.eval_shape(state.tx.update, state.params, state.opt_state, state.params)
    assert jax.tree.structure(new) == jax.tree.structure(state.opt_state)


def test_who_chooses_nothing_is_told_of_both_values(tmp_path):
    message = r"learning_rate is 0\.01 in the checkpoint and 0\.0001 in the state: .* checkpoint"
    with pytest.warns(UserWarning, match=message) as warned:
        state, again = resumed(tmp_path, aj.adam(1e-2), aj.adam(1e-4))
    assert repr(again.tx) == repr(state.tx)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    # What the message says, for everything that it says.
    given = aj.TrainState.create(SMALL, aj.adam(1e-4))
    assert 'hyperparameters="given"' in str(warned[0].message)
    again = aj.restore_checkpoint(tmp_path, given, hyperparameters="given")
    assert repr(again.tx) == repr(given.tx)
    assert bits(again.opt_state) == bits(state.opt_state)
    again = aj.restore_checkpoint(tmp_path, given, hyperparameters="saved")
    assert repr(again.tx) == repr(state.tx)
    with pytest.raises(ValueError, match=r"hyperparameters='code' is not known.*'saved', 'given'"):
        aj.restore_checkpoint(tmp_path, given, hyperparameters="code")
    # Shapes give nothing: neither is there anything to warn of, nor to take.
    shapes = jax.eval_shape(lambda: given)
    assert repr(aj.restore_checkpoint(tmp_path, shapes).tx) == repr(state.tx)
    with pytest.raises(ValueError, match=r"has shapes for them: .*b1.*state\.replace\(tx=…\)"):
        aj.restore_checkpoint(tmp_path, shapes, hyperparameters="given")


def test_a_number_in_float32_is_no_other_one(tmp_path):
    old, new = aj.adam(jnp.float32(0.1)), aj.adam(0.1)
    _, again = resumed(tmp_path, old, new, steps=0)
    assert again.tx.update.args[0].rules[-1].learning_rate == np.float32(0.1)


def logged(file):
    """A transformation of somebody's own."""

    def update(updates, state, params=None):
        assert file.endswith(".txt")
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


GIVEN = {
    "schedule": (aj.adam(0.1), aj.adam(COSINE), [3, 3]),
    "schedule alone": (aj.sgd(0.1), aj.sgd(COSINE), [3]),
    "groups of two": (aj.multi_steps(aj.sgd(0.1), 2), aj.multi_steps(aj.sgd(COSINE), 2), [1]),
    "in a wrapper": (aj.skip_nonfinite(aj.sgd(0.1)), aj.skip_nonfinite(aj.sgd(COSINE)), [3]),
    "number": (aj.adam(COSINE), aj.adam(0.1), [3]),
    "decay": (aj.adamw(0.1, weight_decay=0.0), aj.adamw(0.1, weight_decay=0.5), [3]),
    "no decay": (aj.adamw(0.1, weight_decay=0.5), aj.adamw(0.1, weight_decay=0.0), [3]),
    "a rule more": (aj.interop.torch.adam(0.1), aj.interop.torch.adam(0.1, weight_decay=0.5), [3, 3]),
    "a rule less": (aj.interop.keras.adam(0.1, clipnorm=1.0), aj.interop.keras.adam(0.1), [3, 3]),
    "optax's schedule": (optax.adam(0.1), optax.adam(COSINE), [3, 3]),
    "optax's schedule alone": (optax.sgd(0.1), optax.sgd(COSINE), [3]),
    "optax's number": (optax.adam(COSINE), optax.adam(0.1), [3]),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_a_number_becomes_a_schedule_and_a_decay_comes_and_goes(name, tmp_path):
    old, new, expected = GIVEN[name]
    with pytest.raises(
        ValueError, match=r"(none|number|schedule|0\.\d) in the.*=\"given\"\) goes on"
    ):
        resumed(tmp_path, old, new)
    fresh = aj.TrainState.create(SMALL, new)
    again = aj.restore_checkpoint(tmp_path, fresh, hyperparameters="given")
    assert counts(again.opt_state) == expected
    assert repr(again.tx) == repr(fresh.tx)
    assert jax.tree.structure(again) == jax.tree.structure(fresh)
    like = aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, old))
    assert bits(again.params) == bits(like.params)
    goes_on(again)
    if name == "schedule":  # Its arrays are its own: they can be donated.
        with jax.numpy_dtype_promotion("standard"):  # For optax's schedule.
            again, _ = SMALL_STEP(again, None)
        assert counts(again.opt_state) == [4, 4]


def test_a_decay_rate_becomes_a_schedule_with_its_bias_correction(tmp_path):
    scheduled = aj.adam(0.1, b1=lambda count: 0.8 + 0.0 * count.astype(jnp.float32))
    _, again = resumed(tmp_path, aj.adam(0.1, b1=0.8), scheduled, hyperparameters="given")
    np.testing.assert_allclose(again.opt_state[0].b1_correction, 1 - 0.8**STEPS, rtol=1e-6)
    expected = aj.TrainState.create(SMALL, scheduled)
    for _ in range(STEPS):
        expected, _ = SMALL_STEP(expected, None)
    again, _ = SMALL_STEP(again, None)
    expected, _ = SMALL_STEP(expected, None)
    np.testing.assert_allclose(again.params["w"], expected.params["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (aj.adam(COSINE), aj.adam(optax.constant_schedule(0.2)),
         r"cosine_decay_schedule\(.*init_value=0\.1\) in the checkpoint.*constant_schedule\(value=0\.2\)"),
        (optax.adam(0.1), optax.adam(0.2), r"step_size of scale is -0\.1 in .* and -0\.2 in the state"),
        (optax.chain(optax.clip(1.0), aj.adam(0.1)), optax.chain(optax.clip(1.0), aj.adam(0.2)),
         r"learning_rate of LearningRate .* is 0\.1 in the checkpoint and 0\.2"),
        (aj.skip_nonfinite(aj.sgd(0.1), 3), aj.skip_nonfinite(aj.sgd(0.1), 9),
         "max_consecutive of skip_nonfinite is 3 in the checkpoint and 9"),
        (logged("one.txt"), logged("two.txt"),
         "file of logged is 'one.txt' in the checkpoint and 'two.txt' in the state"),
    ],
    ids=["schedule", "optax", "in optax's chain", "wrapper", "a user's"],
)  # fmt: skip
def test_what_is_code_is_in_force_as_the_code_says(old, new, message, tmp_path):
    with pytest.warns(UserWarning, match=f"{message}.*goes on with those of the state"):
        resumed(tmp_path, old, new, steps=0)
    fresh = aj.TrainState.create(SMALL, new)
    aj.restore_checkpoint(tmp_path, fresh, hyperparameters="given")
    with pytest.raises(
        ValueError, match=f'="saved" cannot be: .*{message}.*Make the state\'s optimizer'
    ):
        aj.restore_checkpoint(tmp_path, fresh, hyperparameters="saved")
    like = aj.TrainState.create(SMALL, old)
    aj.restore_checkpoint(tmp_path, like, hyperparameters="saved")


def test_injected_hyperparameters_are_in_the_state(tmp_path):
    adam = optax.inject_hyperparams(optax.adam)
    with pytest.warns(
        UserWarning, match=r"learning_rate'\] is 0\.01 in .* and 0\.0001 in the state"
    ):
        _, again = resumed(tmp_path, adam(1e-2), adam(1e-4), steps=0)
    assert again.opt_state.hyperparams["learning_rate"] == np.float32(1e-2)
    fresh = aj.TrainState.create(SMALL, adam(1e-4))
    again = aj.restore_checkpoint(tmp_path, fresh, hyperparameters="given")
    assert again.opt_state.hyperparams["learning_rate"] == np.float32(1e-4)
    # Those of a schedule have moved on, and are none of anybody's choice.
    resumed(tmp_path / "scheduled", adam(COSINE), adam(COSINE))


ANOTHER = {
    "adamax": (optax.adam(0.1), optax.adamax(0.1), "scale_by_adam, scale, this one .* scale_by_adamax"),
    "nadam": (optax.adam(0.1), optax.nadam(0.1), "nesterov of scale_by_adam is False in the checkpoint"),
    "injected": (optax.inject_hyperparams(optax.adagrad)(0.1), optax.inject_hyperparams(optax.adamax)(0.1),
                 "inner_factory .* is adagrad in the checkpoint and adamax in the state"),
    "in optax's chain": (optax.chain(aj.adam(0.1)), optax.chain(aj.adamax(0.1)), r"is 'Adam\(.*'AdaMax\("),
    "groups": (aj.multi_steps(aj.sgd(0.1), 2), aj.multi_steps(aj.sgd(0.1), 8),
               "every_k_schedule of multi_steps is 2 in the checkpoint and 8 in the state"),
    "optax's groups": (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
                       optax.MultiSteps(optax.sgd(0.1), 8).gradient_transformation(),
                       "every_k_schedule of MultiSteps is 2 in the checkpoint and 8 in the state"),
    "mask": (aj.adamw(0.1, mask={"w": True, "b": False}), aj.adamw(0.1, mask={"w": False, "b": True}),
             r"mask .*selects \['w'\] in the checkpoint and \['b'\] in the state"),
    "optax's mask": (optax.adamw(0.1, mask={"w": True, "b": False}),
                     optax.adamw(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim < 2, p)),
                     r"mask\['b'\] of masked is False in the checkpoint and True in the state"),
    "climbing": (aj.interop.torch.adam(0.1), aj.interop.torch.adam(0.1, maximize=True),
                 r"made of Adam\(.*this one is of Maximize\(\), Adam\("),
    "wrapper": (aj.sgd(0.1), aj.skip_nonfinite(aj.sgd(0.1)), "made of transform, this one is of skip_nonf"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANOTHER)
def test_another_optimizer_of_equal_arrays_is_refused_by_name(name, tmp_path):
    old, new, message = ANOTHER[name]
    with pytest.raises(ValueError, match=message) as refused:
        resumed(tmp_path, old, new, steps=0, hyperparameters="given")
    # The message's advice.
    state = aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, old))
    assert "state.replace(tx=tx, opt_state=tx.init(state.params))" in str(refused.value)
    goes_on(state.replace(tx=new, opt_state=new.init(state.params)))


FACTORIES = [
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan",
    "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "polyak_sgd", "radam",
    "rmsprop", "sgd", "sign_sgd", "sm3", "yogi",
]  # fmt: skip


@jax.numpy_dtype_promotion("standard")
def test_each_optimizer_of_optax_is_itself_and_no_other():
    def origin_of(name):
        tx = getattr(optax, name)(0.1)
        state = aj.TrainState(0, SMALL, jax.eval_shape(tx.init, SMALL), member(tx, "a test"))
        return json.loads(json.dumps(origin.of(state)))

    every = {name: origin_of(name) for name in FACTORIES}
    for name, first in every.items():
        assert origins.differences(first, origin_of(name)) == ([], [])
    for (one, first), (other, second) in itertools.combinations(every.items(), 2):
        assert origins.differences(first, second)[0], (one, other)


def test_many_values_are_shown(tmp_path):
    many = jax.vmap(lambda rate: aj.TrainState.create(SMALL, aj.adam(rate)))
    aj.save_checkpoint(tmp_path, many(jnp.array([0.1, 0.2])), step=0)
    message = r"learning_rate is \[0\.1, 0\.2\] in the checkpoint and \[0\.1, 0\.3\] in the state"
    with pytest.warns(UserWarning, match=message):
        aj.restore_checkpoint(tmp_path, many(jnp.array([0.1, 0.3])))


def test_a_mask_is_what_it_selects(tmp_path):
    tree = {"w": True, "b": False}
    function = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)  # noqa: E731
    for name, adamw in (("ours", aj.adamw), ("theirs", optax.adamw)):
        resumed(tmp_path / name, adamw(0.1, mask=tree), adamw(0.1, mask=function), steps=0)


def test_another_optimizer_is_told_by_its_state_where_names_are_of_another_version(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(optax, "__version__", "0.0")
    resumed(tmp_path, optax.adam(0.1), optax.adam(0.1), steps=0)
    monkeypatch.undo()
    aj.restore_checkpoint(
        tmp_path, aj.TrainState.create(SMALL, optax.nadam(0.1))
    )  # Not to be told.
    message = r"\.opt_state\[0\] is ScaleByAdamState in the checkpoint and ScaleByBeliefState"
    with pytest.raises(ValueError, match=message):
        aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, optax.adabelief(0.1)))


def test_a_checkpoint_that_does_not_say_what_made_it(tmp_path):
    """Those of version 0.1.0 have the names of entries and rules."""
    state, _ = resumed(tmp_path, aj.adamw(0.1, weight_decay=0.0), aj.adamw(0.1, weight_decay=0.0))
    file = tmp_path / str(STEPS) / "layout" / "metadata"
    layout = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: layout[name] for name in layout if name not in ("numbers", "origin")})
    )
    again = aj.restore_checkpoint(tmp_path, state)
    assert bits(again) == bits(state)
    with pytest.warns(UserWarning, match=r"learning_rate is 0\.1 in the checkpoint and 0\.2"):
        aj.restore_checkpoint(tmp_path, state.replace(tx=aj.adamw(0.2, weight_decay=0.0)))
    given = {"hyperparameters": "given"}
    for tx in (aj.adamw(COSINE, weight_decay=0.0), aj.adamw(0.1, weight_decay=0.5)):
        fresh = aj.TrainState.create(SMALL, tx)
        assert repr(aj.restore_checkpoint(tmp_path, fresh, **given).tx) == repr(tx)
        with pytest.raises(ValueError, match="changed their kind"):
            aj.restore_checkpoint(tmp_path, fresh)
    shapes = jax.eval_shape(lambda: state)
    assert jax.tree.leaves(aj.restore_checkpoint(tmp_path, shapes).tx) == jax.tree.leaves(state.tx)
    with pytest.raises(ValueError, match=r"made of Adam\(.*AdaMax\("):
        aj.restore_checkpoint(tmp_path, aj.TrainState.create(SMALL, aj.adamax(0.1)))


def test_the_hyperparameters_of_version_0_1_0_are_chosen_too(tmp_path):
    """Weight decay and learning rate were one rule."""

    def restored(name, tx, **settings):
        start = saved_runs.create(name)
        start = start.replace(tx=tx, opt_state=tx.init(start.params))
        checkpoint = saved_runs.unpacked("0.1.0", name, tmp_path) / "checkpoint"
        again = aj.restore_checkpoint(checkpoint, start, **settings)
        assert jax.tree.structure(again) == jax.tree.structure(start)
        return again

    given = {"hyperparameters": "given"}
    with pytest.warns(UserWarning, match=r"learning_rate is 0\.1 in the checkpoint and 0\.2 in"):
        assert repr(restored("adamw", aj.adamw(0.2)).tx) == repr(aj.adamw(0.1))
    for tx in (aj.adamw(0.2), aj.adamw(COSINE), aj.adamw(0.1, weight_decay=0.0)):
        again = restored("adamw", tx, **given)
        assert repr(again.tx) == repr(tx)
        assert set(counts(again.opt_state)) == {saved_runs.SAVED_AT}
    with pytest.raises(
        ValueError, match=r"weight_decay is a schedule, or none in .* and 0\.1 in the"
    ):
        restored("adamw without decay", aj.adamw(saved_runs.falling, weight_decay=0.1))
    for rate in (saved_runs.falling, 0.1):
        tx = aj.adamw(rate, weight_decay=0.1)
        assert repr(restored("adamw without decay", tx, **given).tx) == repr(tx)


def meshes():
    types = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}
    return [pytest.param(kind, id=name) for name, kind in types.items()]


@pytest.mark.parametrize("axis_type", meshes())
def test_a_random_key_on_another_number_of_devices(axis_type, tmp_path):
    def mesh(devices):
        return jax.make_mesh(
            (devices,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:devices]
        )

    def create_on(mesh):
        place = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
        params = {"w": jax.device_put(jnp.ones((8, 2)), place(PartitionSpec("x")))}
        state = aj.TrainState.create(params, aj.adam(0.1), rng=jax.random.key(0))
        keys = jax.device_put(jax.random.split(jax.random.key(1), 8), place(PartitionSpec("x")))
        return state.replace(model_state={"keys": keys})

    state = create_on(mesh(8))
    aj.save_checkpoint(tmp_path, state)
    # As if it was of another machine.
    file = next((tmp_path / "0" / "state").rglob("_sharding"))
    file.write_text(file.read_text().replace('\\"id\\": 7', '\\"id\\": 99'))
    assert "99" in file.read_text()
    fewer = create_on(mesh(2))
    again = aj.restore_checkpoint(tmp_path, fewer)
    assert bits(again) == bits(state)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(fewer), strict=True):
        assert getattr(one, "sharding", None) == getattr(other, "sharding", None)
    # From shapes, which know their mesh if it is explicit: whole on it, or else on one device.
    is_explicit = axis_type == jax.sharding.AxisType.Explicit
    shapes = jax.eval_shape(lambda: create_on(mesh(2)))
    for like, devices in (
        (shapes, 2 if is_explicit else 1),
        (shapes.replace(params=fewer.params), 2),
    ):
        again = aj.restore_checkpoint(tmp_path, like)
        assert bits(again) == bits(state)
        assert again.rng.sharding.num_devices == devices
    with jax.set_mesh(mesh(4)) if is_explicit else nullcontext():
        shapes = jax.eval_shape(lambda: create_on(mesh(4)))
    again = aj.restore_checkpoint(tmp_path, shapes)
    assert bits(again) == bits(state)


def test_shapes_come_back_as_they_were_saved(tmp_path):
    """Python numbers too: 0.999 is no float32, and 1 - 0.999 is not rounded."""
    rows = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((8, 2)), rows)}
    state = {"state": aj.TrainState.create(params, aj.adam(0.1)), "epoch": 7, "done": True}
    aj.save_checkpoint(tmp_path, state, step=0)
    again = aj.restore_checkpoint(tmp_path, jax.eval_shape(lambda: state))
    assert again["epoch"] == 7
    assert again["done"] is True
    assert jax.tree.leaves(again["state"].tx) == jax.tree.leaves(state["state"].tx)
    assert all(type(leaf) is float for leaf in jax.tree.leaves(again["state"].tx))
    assert again["state"].params["w"].sharding == rows
    ones = {"w": jnp.full((8, 2), 0.3)}
    for _ in range(5):
        updates = [
            each["state"].tx.update(ones, each["state"].opt_state, params)
            for each in (state, again)
        ]
        assert bits(updates[0]) == bits(updates[1])
    again = aj.restore_checkpoint(tmp_path, {**state, "epoch": 0.5, "done": 0})
    assert (again["epoch"], again["done"]) == (7, True)


@pytest.mark.parametrize("storage", [None, aj.Blocks(min_size=0)])
def test_onto_another_sharding_and_from_shapes_alone(tmp_path, storage, make_mesh):
    tx = aj.adam(0.1, storage=storage)
    state, _ = aj.train_step(loss)(create(tx), 0.1)
    aj.save_checkpoint(tmp_path, state)
    mesh = make_mesh(4)
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
            r"the storage of mu is Float\(.* in the checkpoint and Blocks\(.* in the state; .*"
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

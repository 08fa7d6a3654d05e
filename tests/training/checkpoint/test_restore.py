"""A run that goes on from a checkpoint is the run that was never stopped."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saved_runs
from resumed_runs import SMALL, SMALL_STEP, STEPS, bits, create, goes_on, loss, resumed

import adaptive_jax as aj

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
    "groups": lambda: aj.partition(
        {"a": aj.adam(0.1), "b": aj.sgd(0.1, 0.9), "c": None},
        [("w", "a"), ("low", "b"), (".*", "c")],
    ),
    "optax": lambda: optax.adam(0.1),
}


DEFAULT = ["schedule", "accumulating", "int8", "24 bits", "optax"]


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


COSINE = optax.cosine_decay_schedule(0.1, 100)


def counts(tree):
    with_path = jax.tree_util.tree_leaves_with_path(tree)
    return [int(leaf) for path, leaf in with_path if str(path[-1]) == ".count"]


def test_who_chooses_nothing_is_told_of_both_values(tmp_path):
    message = r"learning_rate is 0\.01 in the checkpoint and 0\.0001 in the state: .* checkpoint"
    with pytest.warns(UserWarning, match=message) as warned:
        state, again = resumed(tmp_path, aj.adam(1e-2), aj.adam(1e-4))
    assert repr(again.tx) == repr(state.tx)
    assert len(warned) == 1
    assert warned[0].filename == resumed.__code__.co_filename
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


def test_many_values_are_shown(tmp_path):
    many = jax.vmap(lambda rate: aj.TrainState.create(SMALL, aj.adam(rate)))
    aj.save_checkpoint(tmp_path, many(jnp.array([0.1, 0.2])), step=0)
    message = r"learning_rate is \[0\.1, 0\.2\] in the checkpoint and \[0\.1, 0\.3\] in the state"
    with pytest.warns(UserWarning, match=message):
        aj.restore_checkpoint(tmp_path, many(jnp.array([0.1, 0.3])))


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

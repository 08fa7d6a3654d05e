"""The state is a stable format, and it is that of optax."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import saved_runs
import write_catalogue
from catalogue import (
    CASES,
    CATALOGUE,
    FIRST,
    REPRESENTATIVES,
    extra_args_of,
    label,
    required,
    rules_of,
    sees_matrices,
)

import adaptive_jax as aj
from adaptive_jax.training import versions
from adaptive_jax.transforms.skip import SkipNonfiniteState
from tests.departures import OTHERWISE_IN_OPTAX

pytestmark = pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated")

PARAMS = {"w": jnp.array([1.0, -2.0]), "half": jnp.ones(3, jnp.bfloat16), "none": None}
MATRICES = {"w": jnp.array([[1.0, -2.0]]), "half": jnp.eye(3, dtype=jnp.bfloat16), "none": None}


def gradients(step, params=PARAMS):
    return jax.tree.map(
        lambda x: (jnp.cos(3.0 * step) * x.astype(jnp.float32)).astype(x.dtype), params
    )


# A change of a recorded layout breaks saved runs: do not edit them, but give the new layout a way in for
# old states, as `training/versions.py` does for those of 0.1.0.
@pytest.mark.parametrize("case", CASES)
def test_layout(case):
    factory, settings = CASES[case]
    tx = factory(**settings)
    state = tx.init(MATRICES if sees_matrices(tx) else PARAMS)
    recorded = json.loads(write_catalogue.LAYOUTS.read_text())
    assert write_catalogue.outline(state) == recorded.get(case), (
        f"python tests/write_catalogue.py records new layouts. That of {case} is recorded as it was: if "
        "it was in a release, saved runs need it; if not, take it out of tests/data/layouts.json first."
    )
    constant = {name for rule in rules_of(tx) for name, slot in rule.slots.items() if slot.constant}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = {getattr(key, "name", None) for key in path}
        if names.isdisjoint(constant):  # Copies of parameters are kept in their dtypes.
            assert leaf.dtype == (jnp.int32 if "count" in names else jnp.float32)


def run(tx, state, steps, params=PARAMS):
    for step in steps:
        given = gradients(step, params)
        updates, state = tx.update(given, state, params, **extra_args_of(tx, given))
    return updates, state


def through_orbax(state, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.eval_shape(lambda: state))


# That each rule's state can be pickled is a promise of its own, see `aj.testing.PROMISES`.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in REPRESENTATIVES else [pytest.mark.slow])
        for case in dict.fromkeys([*FIRST, *REPRESENTATIVES])
    ],
)
def test_a_run_continues_from_a_saved_state_bit_by_bit(case, tmp_path):
    factory, settings = CASES[case]
    tx = factory(**settings)
    params = MATRICES if sees_matrices(tx) else PARAMS
    _, state = run(tx, tx.init(params), range(3), params)
    here = run(tx, state, range(3, 6), params)
    saved = [pickle.loads(pickle.dumps(state)), copy.deepcopy(state)]
    if jax.tree.leaves(state):  # Orbax saves no tree without arrays.
        saved.append(through_orbax(state, tmp_path / "state"))
    for restored in saved:
        there = run(tx, restored, range(3, 6), params)
        assert jax.tree.structure(there) == jax.tree.structure(here)
        for x, y in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# The state is that of optax


def falling(count):
    return 0.1 / (1.0 + count)


def rising(count):
    return 0.01 * (1.0 + count)


def matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


OPTIONS = {
    "learning_rate": [0.1, falling],
    "weight_decay": [0.0, 0.1, rising],
    "mask": [{"w": True, "half": False, "none": True}, matrices],
    "momentum": [0.9],
    "nesterov": [True, False],
    "centered": [True],
    "bias_correction": [True],
    "bias_correction_mu": [False],
    "bias_correction_nu": [False],
    "eps_in_sqrt": [False],
    "mu_dtype": [jnp.bfloat16],
    "accumulator_dtype": [jnp.bfloat16],
    "flip_sign": [False],
}
"""Values for the options of optax that decide on code; the others are numbers."""
OTHER_STATES = {
    "adan": "the steps that it counts are its first entry and called so, as everywhere here",
    "scale_by_adan": "as adan",
    "sm3": "a sum for each axis is a slot: a list of them would be no tree like the parameters",
    "scale_by_sm3": "as sm3",
    "fromage": "one rule that keeps nothing, and not three",
    "polyak_sgd": "a learning rate, and not an sgd with one in it",
}
"""What has another state than in optax."""
SHARED = sorted(set(CATALOGUE) & set(dir(optax)) - set(OTHER_STATES))


def as_optax_says(name, settings):
    """The one argument that has another name."""
    if "weight_decay_mask" not in arguments(name) or "mask" not in settings:
        return settings
    return {("weight_decay_mask" if key == "mask" else key): x for key, x in settings.items()}


def both(name, settings):
    """The transformation of optax, and that of the same name here."""
    return getattr(optax, name)(**as_optax_says(name, settings)), getattr(aj, name)(**settings)


def all_settings(name):
    """Every combination of the options that optax has, each left out as well."""
    parameters = {x.replace("weight_decay_", ""): p for x, p in arguments(name).items()}
    options = [x for x in parameters if x in OPTIONS]
    if (
        "rprop" in name or name == "optimistic_adam"
    ):  # There a schedule is refused, by optax or by both.
        options.remove("learning_rate")
    for values in itertools.product(*([None, *OPTIONS[x]] for x in options)):
        given = {x: value for x, value in zip(options, values, strict=True) if value is not None}
        yield required(name) | given


def arguments(name):
    return inspect.signature(getattr(optax, name)).parameters


@pytest.mark.parametrize("name", SHARED)
def test_the_structure_is_that_of_optax(name):
    for settings in all_settings(name):
        if name == "adafactor" and "learning_rate" not in settings:
            continue  # optax has no relative step, and so no count for it.
        if name == "lars" and callable(settings.get("weight_decay")):
            continue  # The paper's ratio has the weight decay in it too, and a count for its schedule.
        theirs, ours = (jax.eval_shape(tx.init, PARAMS) for tx in both(name, settings))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs), settings


@pytest.mark.parametrize("name", OTHER_STATES)
def test_a_structure_that_is_not_that_of_optax(name):
    theirs, ours = (jax.eval_shape(tx.init, PARAMS) for tx in both(name, required(name)))
    assert jax.tree.structure(ours) != jax.tree.structure(theirs), "take it out of OTHER_STATES"


@pytest.mark.parametrize("name", SHARED)
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_the_structure_with_injected_hyperparameters_is_that_of_optax(name):
    if name == "scale_by_factored_rms":
        pytest.skip("optax takes its decay_rate_fn for a schedule")
    settings = next(all_settings(name))
    if {*arguments(name)} - {*CATALOGUE[name].parameters, "weight_decay_mask"}:
        pytest.skip("its numbers are injected too, and some are left out here")
    if name == "yogi":
        pytest.skip("its numbers are injected too, and there are more of them here")
    theirs, ours = (
        optax.inject_hyperparams(getattr(library, name))(**settings) for library in (optax, aj)
    )
    theirs, ours = theirs.init(PARAMS), ours.init(PARAMS)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


CONTINUED = {
    label(name, settings): (name, settings)
    for name, settings in [
        ("adamw", {"learning_rate": falling, "weight_decay": rising, "mask": matrices}),
        (
            "rmsprop",
            {"learning_rate": falling, "momentum": 0.9, "centered": True, "bias_correction": True},
        ),
        ("sgd", {"learning_rate": falling}),
        ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
        ("adadelta", {"learning_rate": falling, "mask": matrices}),
        ("adam", {"learning_rate": falling}),
        ("adam", {"learning_rate": 0.1, "mu_dtype": jnp.bfloat16}),
        ("nadamw", {"learning_rate": 0.1, "mask": matrices}),
        ("trace", {"decay": 0.9, "nesterov": True}),
        ("scale_by_rms", {"bias_correction": True}),
        ("add_decayed_weights", {"weight_decay": rising, "mask": matrices}),
        ("scale_by_learning_rate", {"learning_rate": falling}),
        # Without a learning rate, optax's adadelta ascends.
        *(
            (name, {"learning_rate": 0.1} if CATALOGUE[name].whole else required(name))
            for name in SHARED
            if CATALOGUE[name].rule.slots and name not in OTHERWISE_IN_OPTAX
        ),
    ]
}


def saved_and_restored(way, state, like, folder):
    """The state, through a file, as something like the other state."""
    if way == "in memory":
        return state
    if way == "flax":
        serialization = pytest.importorskip("flax.serialization")
        return serialization.from_bytes(like, serialization.to_bytes(state))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.eval_shape(lambda: like))


@functools.cache
def run_of_both(name):
    """Of optax and of ours: the jitted update, the first state, that after 3 steps, and 3 updates more."""
    runs = []
    for tx in both(*CONTINUED[name]):
        update, state, updates = jax.jit(tx.update), tx.init(PARAMS), []
        for step in range(6):
            made, state = update(gradients(step), state, PARAMS)
            updates.append(made)
            if step == 2:
                after = state
        runs.append((update, tx.init(PARAMS), after, updates[3:]))
    return runs


@pytest.mark.parametrize("way", ["in memory", "flax", "orbax"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if index % 2 == 0 and index < 6 else [pytest.mark.slow])
        for index, name in enumerate(CONTINUED)
    ],
)
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_a_run_of_optax_goes_on_here_and_one_of_ours_there(name, way, tmp_path):
    # optax's ρ(t) loses digits, and its direction has the momentum before it is rounded.
    rtol = 1e-2 if "radam" in name else 0.1 if "mu_dtype" in name else 2e-5
    theirs, ours = run_of_both(name)
    for source, (update, like, _, _) in ((theirs, ours), (ours, theirs)):
        _, _, state, expected = source
        state = saved_and_restored(
            way, state, like, tmp_path / str(len(like)) / str(source is ours)
        )
        for step in range(3):
            updates, state = update(gradients(3 + step), state, PARAMS)
            np.testing.assert_allclose(updates["w"], expected[step]["w"], rtol=rtol)
        # Slots of bfloat16 are float32 from the first step on. What is true or false in optax stays so.
        if source is theirs and "optimistic" not in name:
            assert jax.tree.map(kind, state) == jax.tree.map(kind, like)


def kind(x):
    return x.shape, x.dtype


def test_a_narrow_state_of_optax_is_converted_to_another_storage():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    lean = aj.adam(0.1, storage=aj.Blocks(min_size=0))
    state = aj.convert_storage(aj.adam(0.1), lean, params, optax.adam(0.1).init(params))
    assert jax.tree.map(kind, state) == jax.tree.map(kind, lean.init(params))


def test_slots_of_another_dtype_than_the_parameter_are_no_state_of_optax():
    params = {"w": jnp.ones(3)}
    narrow = optax.tree.cast(aj.adam(0.1).init(params), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"mu at \['w'\] was made with another storage"):
        aj.adam(0.1).update(params, narrow, params)


def test_parts_are_found_by_name_and_by_position():
    tx = aj.adam(optax.constant_schedule(0.1))
    _, state = run(tx, tx.init(PARAMS), range(2))
    assert optax.tree.get(state, "mu") is state[0].mu
    assert optax.tree.get(state, "nu") is state[0].nu
    assert int(state[0].count) == int(state[1].count) == 2
    assert (
        optax.tree.get(optax.tree.set(state, count=jnp.int32(7)), "ScaleByScheduleState").count == 7
    )


def test_slots_follow_parameters_not_gradients():
    tx = aj.adam(0.1)
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    state = tx.init(half)
    updates, state = tx.update({"w": jnp.ones(3, jnp.float32)}, state, half)
    assert updates["w"].dtype == jnp.float32
    assert state[0].mu["w"].dtype == state[0].nu["w"].dtype == jnp.float32
    updates, _ = tx.update({"w": jnp.ones(3, jnp.bfloat16)}, state, half)
    assert updates["w"].dtype == jnp.bfloat16


def test_mu_dtype_keeps_one_slot_narrow():
    tx = aj.adam(0.1, mu_dtype=jnp.bfloat16)
    params = {"w": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params))
    assert state[0].mu["w"].dtype == jnp.bfloat16
    assert state[0].nu["w"].dtype == updates["w"].dtype == jnp.float32


def test_an_update_is_explained_by_the_state_it_leaves():
    # With a slot in bfloat16, the direction comes from the rounded value, not from the one before.
    tx = aj.scale_by_adam(mu_dtype=jnp.bfloat16, eps=0.0)
    gradient = {"w": jnp.linspace(0.1, 1.0, 50)}
    updates, state = tx.update(gradient, tx.init(gradient))
    mu_hat = state.mu["w"].astype(jnp.float32) / 0.1
    np.testing.assert_allclose(updates["w"], mu_hat / gradient["w"], rtol=1e-6)
    assert not np.allclose(updates["w"], 1.0, rtol=1e-6)


def test_init_of_abstract_parameters():
    shape = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    state = aj.adam(0.1).init(shape)
    assert state[0].mu["w"].shape == (2, 3)
    abstract = jax.eval_shape(aj.adam(0.1).init, shape)
    assert abstract[0].nu["w"].dtype == jnp.float32


def test_labels_name_settings():
    assert label("adam", {"eps": 0.1}) == "adam(eps=0.1)"


# What older versions saved


DEFAULT_RUNS = ["sgd steps", "adadelta decay", "adamw falling rising", "chain", "int8", "optax"]


ALL_RUNS = [
    pytest.param(name, marks=[] if name in DEFAULT_RUNS else [pytest.mark.slow])
    for name in saved_runs.RUNS
]


@pytest.mark.parametrize("version", saved_runs.VERSIONS)
@pytest.mark.parametrize("name", ALL_RUNS)
def test_a_run_of_an_older_version_goes_on(version, name, tmp_path):
    folder = saved_runs.unpacked(version, name, tmp_path)
    start = saved_runs.create(name)
    state = aj.restore_checkpoint(folder / "checkpoint", start)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    assert repr(state.tx) == repr(start.tx)
    state, loss = saved_runs.go_on(state, saved_runs.ENDS_AT)
    # The same bits where they were recorded; elsewhere XLA may contract other products and sums.
    end = np.load(folder / "end.npz")
    np.testing.assert_allclose(loss, end["loss"], rtol=1e-6)
    for index, param in enumerate(jax.tree.leaves(state.params)):
        rtol = 1e-6 if param.dtype == jnp.float32 else 2.0**-8
        np.testing.assert_allclose(np.float32(param), end[f"arr_{index}"], rtol=rtol, atol=1e-7)


def test_what_skips_steps_knows_their_number_in_a_run_of_an_older_version(tmp_path):
    folder = saved_runs.unpacked("0.1.0", "skip_nonfinite", tmp_path)
    state = aj.restore_checkpoint(folder / "checkpoint", saved_runs.create("skip_nonfinite"))
    assert int(state.opt_state.updates) == int(state.step) == saved_runs.SAVED_AT
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    skipped = state.opt_state
    for _ in range(2):
        _, skipped = state.tx.update(bad, skipped, state.params)
    with pytest.raises(
        FloatingPointError, match=r"It began in step 4, where the gradient at \['b'\]"
    ):
        aj.raise_if_stopped(skipped)


@pytest.mark.parametrize("version", saved_runs.VERSIONS)
@pytest.mark.parametrize("name", [each for each in ALL_RUNS if each.values != ("optax",)])
def test_a_pickled_state_of_an_older_version_is_converted(version, name, tmp_path):
    old = pickle.loads(
        (saved_runs.unpacked(version, name, tmp_path) / "opt_state.pickle").read_bytes()
    )
    start = saved_runs.create(name)
    tx, params = start.tx, start.params
    if jax.tree.structure(old) != jax.tree.structure(start.opt_state):
        with pytest.raises(ValueError, match=r"aj\.convert_storage, which takes states of version"):
            tx.update(params, old, params)
    state = aj.convert_storage(tx, tx, params, old)
    assert jax.tree.structure(state) == jax.tree.structure(start.opt_state)
    whole = aj.restore_checkpoint(tmp_path / name / "checkpoint", start).opt_state
    if isinstance(
        whole, SkipNonfiniteState
    ):  # Alone, it does not know the number of the run's steps.
        whole = whole._replace(updates=state.updates)
    rtol = 1e-6 if name == "factored" else 0  # Means of means.
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=rtol)


@pytest.mark.parametrize("name", ALL_RUNS)
def test_a_state_that_an_older_version_saved_alone_is_restored(name, tmp_path, monkeypatch):
    """Without its optimizer: it is known by the names of its entries."""
    folder = saved_runs.unpacked("0.1.0", name, tmp_path)
    old = pickle.loads((folder / "opt_state.pickle").read_bytes())
    start = saved_runs.create(name)
    whole = aj.restore_checkpoint(folder / "checkpoint", start).opt_state
    with monkeypatch.context() as before:
        before.setattr("adaptive_jax.training.versions.LAYOUT", 1)
        aj.save_checkpoint(tmp_path / "alone", {"params": start.params, "opt": [old]}, step=1)
    like = {"params": start.params, "opt": [start.opt_state]}
    (state,) = aj.restore_checkpoint(tmp_path / "alone", like)["opt"]
    assert jax.tree.structure(state) == jax.tree.structure(whole)
    if isinstance(whole, SkipNonfiniteState):
        whole = whole._replace(updates=state.updates)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("version", saved_runs.VERSIONS)
def test_an_older_checkpoint_is_restored_from_shapes_alone(version, tmp_path):
    for name in ("rmsprop momentum falling", "adamw falling rising"):
        folder = saved_runs.unpacked(version, name, tmp_path) / "checkpoint"
        start = saved_runs.create(name)
        shapes = jax.eval_shape(lambda start=start: start)
        state, expected = (
            aj.restore_checkpoint(folder, shapes),
            aj.restore_checkpoint(folder, start),
        )
        assert jax.tree.structure(state) == jax.tree.structure(start)
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.float32(x), np.float32(y))


def test_an_older_checkpoint_of_another_optimizer_is_refused(tmp_path):
    folder = saved_runs.unpacked("0.1.0", "adamw", tmp_path) / "checkpoint"
    create = functools.partial(aj.TrainState.create, saved_runs.PARAMS)
    for tx, message in (
        (
            aj.adamw(0.1, b1=falling),
            r"b1 is a number in the checkpoint and the schedule falling in the",
        ),
        (aj.adadelta(0.1), r"made of Adam\(.*this one is of AdaDelta\("),
        (aj.sgd(0.1), r"made of Adam\(.*this one is of LearningRate\("),
    ):
        with pytest.raises(ValueError, match=message):
            aj.restore_checkpoint(folder, create(tx))


def test_what_is_saved_now_says_its_layout(tmp_path):
    """So that the next version knows it."""
    state = aj.TrainState.create(PARAMS, aj.adamw(falling, mask=matrices))
    aj.save_checkpoint(tmp_path, state)
    (layout,) = tmp_path.glob("0/layout/metadata")
    assert json.loads(layout.read_text())["version"] == versions.LAYOUT


def test_weight_decay_where_there_was_none():
    before, after = aj.adam(0.1), aj.adam(0.1, weight_decay=rising, mask=matrices)
    _, state = run(before, before.init(PARAMS), range(3))
    state = aj.convert_storage(before, after, PARAMS, state)
    assert jax.tree.structure(state) == jax.tree.structure(after.init(PARAMS))
    assert int(state[0].count) == 3
    assert int(state[1].inner_state.count) == 0
    with pytest.raises(
        ValueError, match=r"weight decay, mask or schedule, with aj\.convert_storage"
    ):
        after.update(PARAMS, before.init(PARAMS), PARAMS)
    back = aj.convert_storage(after, before, PARAMS, state)
    assert jax.tree.structure(back) == jax.tree.structure(before.init(PARAMS))


# The slots in bfloat16 are not written over, as float32 follows: older versions of jax warn.
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_a_whole_run_of_optax_goes_on_under_ours():
    create = functools.partial(aj.TrainState.create, saved_runs.PARAMS)
    theirs, _ = saved_runs.go_on(create(optax.adamw(falling, weight_decay=0.1)), 2)
    ours = theirs.replace(tx=aj.adamw(falling, weight_decay=0.1))
    ours, _ = saved_runs.go_on(jax.tree.map(jnp.copy, ours), 4)
    theirs, _ = saved_runs.go_on(theirs, 4)
    for name in ("w", "b"):
        np.testing.assert_allclose(ours.params[name], theirs.params[name], rtol=1e-5)
    assert ours.opt_state[0].nu["low"].dtype == jnp.float32


def test_what_has_no_state_takes_whatever_comes():
    """As in optax, whose users call `update(updates, None)` of a clip."""
    updates, state = aj.clip(1.0).update(jnp.array([3.0]), None)
    assert updates == 1.0
    assert state is None


def test_ours_in_the_place_of_optaxs_keeps_its_states(monkeypatch):
    """Its types are taken from optax's functions, also where somebody has put ours there."""
    monkeypatch.setattr(optax, "scale_by_rms", aj.scale_by_rms)
    aj._core.states.state_type.cache_clear()
    state = aj.scale_by_rms(bias_correction=True).init(jnp.ones(2))
    assert type(state).__name__ == "ScaleByRmsWithCountState"


def test_modules_that_are_no_more_hand_on_what_is_public_and_what_was_pickled():
    from adaptive_jax.optimizers import adam
    from adaptive_jax.wrappers import skip_nonfinite

    assert (adam, skip_nonfinite) == (aj.adam, aj.skip_nonfinite)
    text = pickle.dumps(aj.Blocks(bits=16), 0)  # The protocol that is text.
    text = text.replace(b"_core.storage.blocks", b"_storage")
    assert pickle.loads(text) == aj.Blocks(bits=16)
    with pytest.raises(ImportError, match="cannot import name 'adagad'"):
        from adaptive_jax.optimizers import adagad  # noqa: F401


def test_rules_that_have_gone_to_another_family_are_found_where_they_were_pickled():
    tx = aj.amsgrad(0.1)
    text = pickle.dumps(tx, 0)  # The protocol that is text.
    old = text.replace(b"rules.adamax", b"rules.adam")
    assert old != text
    assert repr(pickle.loads(old)) == repr(tx)
    with pytest.raises(ImportError, match="cannot import name 'NoRule'"):
        from adaptive_jax.rules.adam import NoRule  # noqa: F401

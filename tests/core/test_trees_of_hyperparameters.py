"""Hyperparameters that are trees: a number for each array, or for all arrays of a branch."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

PARAMS = {
    "head": {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -2.0, 1.0])},
    "body": jnp.array([3.0, -0.1]),
}
GRADIENTS = jax.tree.map(lambda x: 0.3 * x + 0.1, PARAMS)
RATES = {"head": 0.1, "body": 0.01}


def updates_of(tx, steps=3, params=PARAMS, gradients=GRADIENTS):
    """The last update of a few, and the state after it."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
    return updates, state


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def of_branch(tree, path, single):
    """What a tree has for an array, by the keys of its path."""
    for key in path:
        tree = tree if single(tree) else tree[key.key]
    return tree


CASES = {
    "adamw": (
        aj.adamw,
        {
            "learning_rate": RATES,
            "b1": {"head": {"w": 0.9, "b": 0.5}, "body": 0.0},
            "b2": {"head": 0.99, "body": jnp.float32(0.9)},
            "eps": {"head": 1e-3, "body": 1e-8},
            "weight_decay": {"head": {"w": 0.1, "b": 0}, "body": 0.01},
        },
    ),
    "sgd": (aj.sgd, {"learning_rate": RATES, "momentum": {"head": 0.9, "body": 0.5}}),
    "rmsprop": (aj.rmsprop, {"learning_rate": RATES, "decay": {"head": 0.9, "body": 0.5}}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_array_has_its_own_numbers(case):
    """It takes the steps of an optimizer of that array alone."""
    factory, options = CASES[case]
    updates, _ = updates_of(factory(**options))
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        own = {
            name: of_branch(tree, path, lambda x: not isinstance(x, dict))
            for name, tree in options.items()
        }
        params, gradients = (of_branch(tree, path, lambda x: False) for tree in (PARAMS, GRADIENTS))
        alone, _ = updates_of(factory(**own), params=params, gradients=gradients)
        np.testing.assert_allclose(update, alone, rtol=1e-6)


def test_it_is_what_partition_makes_of_the_same_groups():
    labels = {"head": {"w": "head", "b": "head"}, "body": "body"}
    groups = {"head": optax.adamw(0.1, weight_decay=0.1), "body": optax.adamw(0.01)}
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = updates_of(optax.partition(groups, labels), steps=5)
    updates, _ = updates_of(aj.adamw(RATES, weight_decay={"head": 0.1, "body": 1e-4}), steps=5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5), updates, expected)


def test_a_decay_of_0_and_a_mask_say_the_same():
    tree = {"head": {"w": 0.1, "b": 0}, "body": 0}
    mask = {"head": {"w": True, "b": False}, "body": False}
    assert_equal(
        updates_of(aj.adamw(0.1, weight_decay=tree))[0],
        updates_of(aj.adamw(0.1, weight_decay=0.1, mask=mask))[0],
    )


def test_a_mask_and_a_tree_go_together():
    mask = {"head": {"w": True, "b": False}, "body": True}
    both = aj.adamw(0.1, weight_decay={"head": 0.1, "body": 0.2}, mask=mask)
    tree = {"head": {"w": 0.1, "b": 0}, "body": 0.2}
    assert_equal(updates_of(both)[0], updates_of(aj.adamw(0.1, weight_decay=tree))[0])


# Schedules in trees.


def falling(count):
    return 0.1 / (1 + jnp.asarray(count, jnp.float32))


def rising(count):
    return 0.9 * jnp.asarray(count, jnp.float32) / (1 + jnp.asarray(count, jnp.float32))


def test_a_schedule_is_one_hyperparameter_of_a_tree():
    tree = {"head": falling, "body": aj.schedules.linear_schedule(0.1, 0.0, 10)}
    updates, state = updates_of(aj.sgd(tree))
    assert state[-1].count == 3
    for name, schedule in tree.items():
        assert_equal(updates[name], updates_of(aj.sgd(schedule))[0][name])


def test_the_correction_of_a_moving_decay_has_the_structure_of_the_tree():
    tree = {"head": {"w": 0.5, "b": rising}, "body": 0.9}
    updates, state = updates_of(aj.adam(0.1, b1=tree))
    correction = state[0].b1_correction
    assert jax.tree.structure(correction) == jax.tree.structure(tree)
    np.testing.assert_allclose(correction["body"], 1 - 0.9**3, rtol=1e-6)
    for b, path in ((0.5, ("head", "w")), (rising, ("head", "b")), (0.9, ("body",))):
        alone, other = updates_of(aj.adam(0.1, b1=b))
        here = updates
        for key in path:
            here, alone = here[key], alone[key]
        assert_equal(here, alone)
        if b is rising:
            assert_equal(correction["head"]["b"], other[0].b1_correction)


def test_a_state_of_another_tree_is_refused():
    state = aj.adam(0.1, b1={"head": rising, "body": 0.9}).init(PARAMS)
    other = aj.adam(0.1, b1={"head": {"w": rising, "b": 0.5}, "body": 0.9})
    with pytest.raises(ValueError, match="the state's b1_correction was made for another b1"):
        other.update(GRADIENTS, state, PARAMS)


# What a tree may look like.


Pair = namedtuple("Pair", "first second")


@jax.tree_util.register_dataclass
@dataclass
class Node:
    first: Any
    second: Any

    def __call__(self, x):
        """A module can be called, and is no schedule for that."""


KINDS = {"NamedTuple": Pair, "dataclass": Node, "list": lambda *x: list(x), "tuple": lambda *x: x}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_every_kind_of_node_may_be_in_it(make):
    params = make(jnp.ones(2), {"w": jnp.ones(3)})
    tx = aj.sgd(make(jnp.float32(0.5), 0.25))
    updates, _ = tx.update(params, tx.init(params))
    assert [x[0] for x in jax.tree.leaves(updates)] == [-0.5, -0.25]


def test_a_bare_array_has_a_bare_number():
    tx = aj.sgd(0.5)
    assert tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0][0] == -0.5


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"head": 0.1}, r"only the params have \['body'\]\. A tree of hyperparameters has"),
        ({"head": {"w": 0.1}, "body": 0.1}, r"only the params have \['head'\]\['b'\]"),
        ({**RATES, "tail": 0.1}, r"only learning_rate in LearningRate have \['tail'\]"),
        ({"head": 0.1, "body": {"w": 0.1}}, r"LearningRate have \['body'\]\['w'\]"),
        ([0.1, 0.1], r"\['body'\], .*; only learning_rate in LearningRate have \[0\], \[1\]"),
        ({"head": {"w": 0.1, "b": None}, "body": 0.1}, r"has None for \['head'\]\['b'\]"),
    ],
)
def test_a_tree_that_is_no_prefix_is_refused(tree, message):
    tx = aj.sgd(tree)
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=message.replace("params", "gradients")):
        tx.update(GRADIENTS, aj.sgd(0.1).init(PARAMS))


@pytest.mark.parametrize(
    ("tree", "kind", "message"),
    [
        ({"w": -0.1}, ValueError, r"learning_rate\['w'\]=-0.1 is out of range .* To maximise"),
        ({"w": jnp.ones(3)}, ValueError, r"learning_rate\['w'\] has shape \(3,\)"),
        ({"w": ["x"]}, TypeError, r"learning_rate\['w'\]\[0\]='x' is a str"),
        ({"w": True}, TypeError, r"learning_rate\['w'\]=True is a bool"),
    ],
)
def test_what_is_no_number_is_refused_by_its_path(tree, kind, message):
    with pytest.raises(kind, match=message):
        aj.sgd(tree)


def test_none_leaves_a_hyperparameter_out_where_that_is_possible():
    tree = {"head": {"w": 0.1, "b": None}, "body": None}
    zeros = jax.tree.map(lambda x: x or 0, tree, is_leaf=lambda x: x is None)
    one, other = (aj.transform(aj.LearningRate(0.1, weight_decay=x)) for x in (tree, zeros))
    assert_equal(updates_of(one)[0], updates_of(other)[0])


def test_arrays_without_a_gradient_need_no_number_of_their_own():
    params = {"head": {"w": jnp.ones(2), "b": None}, "body": {"w": jnp.ones(2)}}
    tx = aj.sgd({"head": {"w": 0.5, "b": None}, "body": {"w": 0.25}}, 0.9)
    state = tx.init(params)
    updates, state = tx.update({"head": params["head"], "body": {"w": None}}, state, params)
    assert updates["body"] == {"w": None}
    assert updates["head"]["w"][0] == -0.5
    assert state[0].trace["body"]["w"][0] == 0


def test_large_numbers_are_told_by_their_path():
    with pytest.warns(UserWarning, match=r"learning_rate\['w'\]=3.0 in adam"):
        aj.adam({"w": 3.0, "b": 0.1})


def test_it_prints_as_it_was_written():
    tx = aj.adam({"a": 0.1, "b": (jnp.float32(0.5), falling)})
    assert repr(tx).startswith("adam(learning_rate={'a': 0.1, 'b': (0.5, falling)}, b1=0.9,")
    many = aj.sgd([0.1 * (i + 1) for i in range(100)][:10] * 10)
    assert repr(many) == "sgd(learning_rate=<a list of 100: 0.1 to 1>)"


# Data.


def test_a_new_number_compiles_nothing(compiled):
    for rates in ({"head": 0.1, "body": 0.2}, {"head": 0.3, "body": 0.4}):
        tx = aj.adam(rates, b1={"head": 0.9, "body": 0.8})
        state = tx.init(PARAMS)
        compiled.clear()
        tx.update(GRADIENTS, state, PARAMS)
    assert compiled == []


def test_arrays_of_one_shape_are_traced_once_whatever_their_numbers():
    traced = []

    @dataclass(frozen=True)
    class Counted(aj.Rule):
        factor: aj.Hyper = 1.0

        def update(self, grad, slots, param, ctx):
            traced.append(grad.shape)
            assert (self.factor.shape, self.factor.dtype) == ((), grad.dtype)
            return self.factor * grad, {}

    params = [jnp.ones(3)] * 5
    updates, _ = updates_of(
        aj.transform(Counted([0.1, 0.2, 0.3, 0.4, 0.5])), 1, params=params, gradients=params
    )
    assert traced == [(3,)]
    np.testing.assert_allclose([x[0] for x in updates], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)


def test_a_number_is_in_the_precision_of_its_array():
    with jax.enable_x64(True):
        params = [jnp.ones(2, jnp.float64), jnp.ones(2, jnp.bfloat16)]
        tx = aj.sgd([0.1, 0.2], [0.9, 0.8])
        (wide, narrow), _ = updates_of(tx, 2, params=params, gradients=params)
        np.testing.assert_array_equal(wide, -0.1 * (1.0 + 0.9))
        assert narrow.dtype == jnp.bfloat16


def test_through_jit_vmap_and_scan():
    def last(tx):
        def step(carry, _):
            updates, state = tx.update(GRADIENTS, carry, PARAMS)
            return state, updates

        return jax.lax.scan(step, tx.init(PARAMS), length=3)[1]["body"][-1]

    rates = jnp.array([0.1, 0.2])
    many = jax.vmap(lambda x: aj.adam({"head": x, "body": 0.5 * x}))(rates)
    with pytest.raises(ValueError, match=r"these are many optimizers, made by jax\.vmap"):
        many.update(GRADIENTS, aj.adam(0.1).init(PARAMS), PARAMS)
    swept = jax.jit(jax.vmap(last))(many)
    for rate, each in zip(rates, swept, strict=True):
        alone = jax.jit(last)(aj.adam({"head": float(rate), "body": float(rate) / 2}))
        np.testing.assert_allclose(each, alone, rtol=1e-6)


def test_many_numbers_are_told_by_their_path():
    many = jax.vmap(lambda x: aj.sgd({"head": x, "body": x}))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"learning_rate\['body'\] has the shape \(2,\)"):
        many.update(GRADIENTS, aj.sgd(0.1).init(PARAMS), PARAMS)


def test_the_derivative_with_respect_to_each_number():
    with jax.enable_x64(True):
        params = [jnp.array([0.3, -2.0]), jnp.array([1.5])]

        def loss(tree):
            tx = aj.adam(tree, b1=[0.9, tree[1]], eps=1e-2, weight_decay=[tree[0], 0.1])
            state = tx.init(params)
            for _ in range(2):
                updates, state = tx.update(params, state, params)
            return sum(jnp.sum(x**2) for x in updates)

        given, jitted = [0.1, 0.3], jax.jit(loss)
        for index, derivative in enumerate(jax.grad(loss)(given)):
            near = ([x + h * (i == index) for i, x in enumerate(given)] for h in (1e-6, -1e-6))
            difference = jnp.subtract(*map(jitted, near)) / 2e-6
            np.testing.assert_allclose(derivative, difference, rtol=1e-5)


def test_more_arrays_than_one_program_takes(compiled):
    params = [jnp.full(3, 1.0 + i) for i in range(300)]
    rates = [0.001 * (i % 7) for i in range(300)]
    tx = aj.adam(rates, b1=[0.5, *[0.9] * 299])
    state = tx.init(params)
    compiled.clear()
    updates, state = tx.update(params, state)
    assert compiled.count("update_tree") <= 3
    for rate, update in zip(rates, updates, strict=True):
        np.testing.assert_allclose(update, -rate, rtol=1e-5)
    moved = aj.adam([2 * rate for rate in rates], b1=[0.5, *[0.9] * 299])
    compiled.clear()
    updates, state = moved.update(params, state)
    assert compiled == []
    np.testing.assert_allclose(updates[3], -2 * rates[3], rtol=1e-5)


def test_schedules_among_the_numbers_of_more_arrays_than_one_program_takes(monkeypatch):
    monkeypatch.setattr("adaptive_jax._core.pieces._MOST_ARRAYS", 10)
    params = [jnp.full(3, 1.0 + i) for i in range(12)]
    tx = aj.adam([0.1, falling] * 6)
    updates, _ = updates_of(tx, 2, params=params, gradients=params)
    np.testing.assert_allclose(updates[10], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates[11], -0.05, rtol=1e-5)
    tx = aj.adam(0.1, b1=[0.9] * 11 + [rising])  # With corrections of all of them in the state.
    updates, state = updates_of(tx, 2, params=params, gradients=params)
    np.testing.assert_allclose(updates[11], -0.1, rtol=1e-5)
    np.testing.assert_allclose(state[0].b1_correction[0], 1 - 0.9**2, rtol=1e-6)
    np.testing.assert_allclose(state[0].b1_correction[11], 1 - 0.9 * 0, rtol=1e-6)


def test_on_a_mesh(make_mesh):
    mesh = make_mesh(2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.tree.map(
        lambda x: jax.device_put(x, sharding), {"a": jnp.ones((4, 2)), "b": jnp.ones(2)}
    )
    tx = aj.adam({"a": 0.5, "b": falling}, b1={"a": 0.9, "b": rising})
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    assert updates["a"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-5)


# Training.


def loss_fn(params, batch):
    return sum(jnp.sum((x - batch) ** 2) for x in jax.tree.leaves(params))


def test_a_training_step_sends_the_numbers_and_measures_the_largest_rate(compiled, tmp_path):
    step = aj.train_step(loss_fn)

    def optimizer(rate):
        return aj.adam({"head": rate, "body": falling}, b1={"head": 0.9, "body": 0.8})

    copy = jax.tree.map(jnp.copy, PARAMS)
    state = aj.TrainState.create(copy, optimizer(0.05))
    state, metrics = step(state, 0.0)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)
    state = state.replace(tx=optimizer(0.2))
    compiled.clear()
    state, metrics = step(state, 0.0)
    assert compiled == []
    np.testing.assert_allclose(metrics["learning_rate"], 0.2)

    aj.save_checkpoint(tmp_path / "run", state)
    fresh = aj.TrainState.create(jax.tree.map(jnp.copy, PARAMS), optimizer(0.7))
    with pytest.warns(UserWarning, match="learning_rate"):
        restored = aj.restore_checkpoint(tmp_path / "run", fresh)
    assert repr(restored.tx) == repr(state.tx)
    assert_equal(step(restored, 0.0)[0].params, step(state, 0.0)[0].params)


def test_a_run_may_go_on_with_a_tree_in_the_place_of_a_number(tmp_path):
    def state_of(tx):
        return aj.TrainState.create(jax.tree.map(jnp.copy, PARAMS), tx)

    state, _ = aj.train_step(loss_fn)(state_of(aj.adam(0.1, b1=0.5)), 0.0)
    aj.save_checkpoint(tmp_path / "run", state)
    tx = aj.adam(RATES, b1={"head": {"w": rising, "b": 0.5}, "body": 0.5})
    told = r"b1\['head'\]\['w'\] is none in the checkpoint and the schedule rising in the state; b1 is 0.5"
    with pytest.raises(ValueError, match=told):
        aj.restore_checkpoint(tmp_path / "run", state_of(tx))
    restored = aj.restore_checkpoint(tmp_path / "run", state_of(tx), hyperparameters="given")
    assert restored.tx.data.rules[-1].learning_rate == RATES
    converted = aj.convert_storage(state.tx, tx, PARAMS, state.opt_state)
    for correction in (restored.opt_state[0].b1_correction, converted[0].b1_correction):
        assert jax.tree.leaves(correction) == [0.5] * 3


def test_a_sweep_over_a_number_in_a_tree():
    def train(factor):
        tx = aj.sgd({"head": factor, "body": 0.1})
        updates, _ = tx.update(GRADIENTS, tx.init(PARAMS))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(updates["head"]))

    assert aj.sweep(train, factor=[0.5, 0.1, 0.3], progress=False).best()["factor"] == 0.1


# Rules that look at all arrays.


@dataclass(frozen=True)
class Balanced(aj.Rule):
    """Every array moves as far as all of them would together with their weights."""

    weight: aj.NonNegative = 1.0
    limit: aj.NonNegative = 1.0
    per_array = ("weight",)

    def measure(self, grad, slots, param, ctx):
        assert self.weight.shape == ()
        return {"size": jnp.sum(jnp.abs(grad))}

    def advance(self, scalars, measured, ctx):
        assert (self.weight.shape, self.limit.shape) == (measured["size"].shape, ())
        return {"size": jnp.sum(self.weight * measured["size"]) * self.limit}

    def update(self, grad, slots, param, ctx):
        return self.weight * ctx.scalars["size"] * jnp.ones_like(grad), {}


def test_advance_sees_a_vector_in_the_order_of_what_was_measured():
    params = [jnp.ones(0), jnp.ones(1), None, jnp.full(2, 2.0)]
    tx = aj.transform(Balanced([7.0, 0.5, None, 0.25]))
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates[0].shape == (0,)
    assert updates[2] is None
    np.testing.assert_array_equal(updates[1], 0.5 * (0.5 * 1 + 0.25 * 4))
    np.testing.assert_array_equal(updates[3], 0.25 * (0.5 * 1 + 0.25 * 4))
    one = aj.transform(Balanced(0.5))
    np.testing.assert_array_equal(one.update(params, one.init(params), params)[0][1], 0.5 * 0.5 * 5)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (aj.transform(Balanced(limit=RATES)), r"limit is a tree in Balanced, .* per_array = "),
        (aj.clip_by_global_norm(RATES), "max_norm is a tree in ClipByGlobalNorm, whose `advance`"),
        (aj.nadam(0.1, b1=RATES, momentum_decay=0.1), "b1 is a tree in NAdam"),
    ],
)
def test_one_number_for_all_arrays_is_no_tree(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)


def test_what_is_per_array_must_be_a_hyperparameter():
    @dataclass(frozen=True)
    class Wrong(Balanced):
        per_array = ("wieght",)

    with pytest.raises(TypeError, match=r"Wrong\.per_array names 'wieght', .* weight, limit"):
        aj.transform(Wrong())


def test_each_array_may_be_clipped_to_a_norm_of_its_own():
    updates, _ = updates_of(aj.clip_by_norm({"head": 0.25, "body": np.inf}))
    np.testing.assert_allclose(jnp.linalg.norm(updates["head"]["b"]), 0.25, rtol=1e-6)
    assert_equal(updates["body"], GRADIENTS["body"])


def test_nadam_takes_trees_of_what_its_advance_does_not_use():
    tree = {"head": 0.999, "body": 0.5}
    updates, _ = updates_of(aj.nadam(0.1, b2=tree, momentum_decay=0.1))
    for name, b2 in tree.items():
        alone, _ = updates_of(aj.nadam(0.1, b2=b2, momentum_decay=0.1))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates[name], alone[name]
        )


@dataclass(frozen=True)
class Counting(aj.Rule):
    """Numbers of each array that begin with a hyperparameter."""

    first: aj.Hyper = 1.0
    slots = {"kept": aj.Slot("first")}
    scalars = {"number": "first"}
    layerwise = True

    def advance(self, scalars, measured, ctx):
        return {"number": scalars["number"] + 1}

    def update(self, grad, slots, param, ctx):
        return ctx.scalars["number"] + slots["kept"], {"kept": slots["kept"]}


@pytest.mark.parametrize(
    "storage", [None, aj.Masked(aj.BFloat16(min_size=0), {"head": True, "body": False})]
)
def test_what_begins_with_a_tree_begins_with_the_number_of_the_array(storage):
    tx = aj.transform(
        Counting({"head": {"w": 1.0, "b": 2.0}, "body": jnp.float32(3.0)}), storage=storage
    )
    state = tx.init(PARAMS)
    assert (state.number["head"]["b"], state.kept["body"][0]) == (2, 3)
    assert state.kept["head"]["w"].dtype == (jnp.bfloat16 if storage else jnp.float32)
    updates, state = tx.update(GRADIENTS, state)
    np.testing.assert_array_equal(updates["head"]["b"], 2 + 1 + 2)
    assert state.number["body"] == 4
    with pytest.raises(TypeError, match=r"first\['w'\]=falling is a schedule in Counting"):
        Counting({"w": falling})


@dataclass(frozen=True)
class CountingFromSquares(aj.Rule):
    """What it begins with is made of a hyperparameter."""

    first: aj.NonNegative = 2.0
    slots = {"kept": aj.Slot("square")}
    scalars = {"numbers": "pair"}
    layerwise = True

    @property
    def square(self):
        return self.first**2

    @property
    def pair(self):
        return self.first, self.first + 1

    def advance(self, scalars, measured, ctx):
        return dict(scalars)

    def update(self, grad, slots, param, ctx):
        return ctx.scalars["numbers"][1] + slots["kept"], dict(slots)


def test_what_begins_with_a_property_of_a_tree_begins_with_that_of_the_array():
    tx = aj.transform(CountingFromSquares({"head": {"w": 1.0, "b": 2.0}, "body": 3.0}))
    state = tx.init(PARAMS)
    np.testing.assert_array_equal(state.numbers["head"]["b"], [2, 3])
    updates, _ = tx.update(GRADIENTS, state)
    np.testing.assert_array_equal(updates["body"][0], jnp.full_like(PARAMS["body"][0], 9.0 + 4.0))
    named = optax.tree.map_params(
        tx, lambda x: "like", state, transform_non_params=lambda x: "other"
    )
    assert named.kept["head"]["w"] == "like"


def test_the_learning_rate_before_a_rule_is_that_of_the_array():
    @dataclass(frozen=True)
    class Told(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad / ctx.learning_rate, {}

    updates, _ = updates_of(aj.transform(aj.LearningRate(RATES), Told()))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, -y, rtol=1e-6), updates, GRADIENTS)

    @dataclass(frozen=True)
    class Asking(Balanced):
        def advance(self, scalars, measured, ctx):
            return {"size": ctx.learning_rate}

    tx = aj.transform(aj.LearningRate(RATES), Asking())
    with pytest.raises(
        AttributeError, match=r"asks for ctx\.learning_rate: .* one for each of them"
    ):
        tx.update(GRADIENTS, tx.init(PARAMS))


def test_in_a_group_of_a_partition():
    tx = aj.partition(
        {"a": aj.sgd({"head": {"w": 0.5, "b": 0.25}, "body": 0.1}), "b": aj.sgd(0.125)},
        {"head": "a", "body": "b"},
    )
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["head"]["w"], -0.5 * GRADIENTS["head"]["w"])
    np.testing.assert_array_equal(updates["body"], -0.125 * GRADIENTS["body"])


def test_the_rate_at_a_step_is_a_tree():
    rule = aj.LearningRate({"a": 0.5, "b": falling}, learning_rate_decay={"a": 1.0, "b": 0.0})
    rates = rule.learning_rate_at(3)
    np.testing.assert_allclose([rates["a"], rates["b"]], [0.5 / 3, 0.1 / 3], rtol=1e-6)
    in_group = aj.LearningRate({"a": 0.5}, learning_rate_decay={"a": 1.0, "b": 0.0})
    assert in_group.learning_rate_at(3).keys() == {"a"}  # What has a group of its own has one.

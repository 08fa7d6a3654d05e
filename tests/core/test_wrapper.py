"""A wrapper of one's own: what follows from its fields, and how everything walks through it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax._core import export
from adaptive_jax._core.lifted import Lifted
from adaptive_jax._core.transformation import Foreign, Transformation, data_behind
from adaptive_jax._core.wrapper import Wrapper, rebuilt, walk


@export.state
class MeanState(NamedTuple):
    own: jax.Array
    of_them: Any


@dataclass(frozen=True)
class Mean(Wrapper):
    """The weighted mean of what several transformations make of the gradients."""

    several: tuple[Any, ...]
    weight: Any = 1.0
    is_negative: bool = False

    wraps = {"several": "of_them"}
    data_fields = ("weight",)
    state_type = MeanState

    def init(self, params):
        return MeanState(jnp.zeros(()), tuple(each.init(params) for each in self.several))

    def step(self, updates, state, params=None, **extra_args):
        pairs = [
            each.update(updates, part, params, **extra_args)
            for each, part in zip(self.several, state.of_them, strict=True)
        ]
        scale = self.weight * (-1 if self.is_negative else 1) / len(pairs)
        new = jax.tree.map(lambda *each: scale * sum(each), *[update for update, _ in pairs])
        return new, MeanState(state.own + 1, tuple(part for _, part in pairs))


PARAMS = {"w": jnp.ones((64, 128)), "b": jnp.ones(3)}
THEIRS = optax.sgd(1.0, momentum=0.5)


def mean(storage=None, rate=0.5):
    members = aj.adam(rate, storage=storage), THEIRS
    return Transformation.of(Mean((*members, aj.chain(aj.clip(1.0), aj.sgd(rate))), weight=0.5))


def test_all_follows_from_the_fields():
    tx = mean()
    assert repr(tx).startswith("Mean(adam(learning_rate=0.5, b1=0.9, ")
    assert repr(tx).endswith(
        "chain, chain(clip(max_delta=1.0), sgd(learning_rate=0.5)), weight=0.5)"
    )
    assert jax.tree.leaves(tx)[-3:] == [1.0, 0.5, 0.5]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tx)]
    assert paths[-1] == ".update.weight"
    assert paths[-2] == ".update.several[2].update.members[1].update.rules[1].learning_rate"
    update = jax.jit(lambda tx, state: tx.update(PARAMS, state, PARAMS))
    for rate in (0.1, 0.2):
        _, state = update(mean(rate=rate), tx.init(PARAMS))
    assert update._cache_size() == 1
    with pytest.raises(ValueError, match=r"expected MeanState\(own, of_them\), got EmptyState"):
        tx.update(PARAMS, optax.EmptyState(), PARAMS)
    many = jax.vmap(lambda rate: mean(rate=rate))(jnp.array([0.1, 0.2]))
    assert "learning_rate=float32[2]" in repr(many)
    ours = Transformation.of(Mean((aj.sgd(0.5),), 2.0, True))
    again = pickle.loads(pickle.dumps(ours))
    assert repr(again) == repr(ours) == "Mean(sgd(learning_rate=0.5), weight=2.0, is_negative=True)"
    assert jax.tree.structure(again) == jax.tree.structure(ours)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


def test_the_walk_and_the_way_back():
    tx = mean()
    state = tx.init(PARAMS)
    found = list(walk(tx, state, state))
    kinds = [Lifted, Foreign, Lifted, Lifted]
    assert all(isinstance(each[0], kind) for each, kind in zip(found, kinds, strict=True))
    assert found[0][1] is state.of_them[0]
    assert found[2][1] is found[2][2] is state.of_them[2][0]
    assert [data for (data,) in walk(tx)] == [data for data, _, _ in found]
    same, kept = rebuilt(lambda like, data, state: (data, state), tx, tx, state)
    assert jax.tree.structure((same, kept)) == jax.tree.structure((tx, state))
    marked = rebuilt(lambda like, data, state: (data, "here"), tx, tx, state)[1]
    assert marked == MeanState(state.own, ("here", "here", ("here", "here")))
    assert data_behind(tx.init) is data_behind(tx.update) is tx.data
    assert data_behind(optax.sgd(0.1).update) is None


def test_everything_of_the_library_goes_through_it():
    exact, lean = mean(), mean("int8")
    assert aj.state_bytes(lean, PARAMS).by_slot["mu"] < aj.state_bytes(exact, PARAMS).by_slot["mu"]
    _, state = exact.update(PARAMS, exact.init(PARAMS), PARAMS)
    converted = aj.convert_storage(exact, lean, PARAMS, state)
    assert jax.tree.structure(converted) == jax.tree.structure(lean.init(PARAMS))
    np.testing.assert_array_equal(converted.own, 1)
    ours = Transformation.of(Mean((aj.sgd(0.5), aj.scale_by_learning_rate(0.5))))
    step = aj.train_step(lambda params, batch: jnp.sum(params["b"]) * batch)
    _, metrics = step(aj.TrainState.create(PARAMS, ours), 1.0)
    assert metrics["learning_rate"] == 0.25
    spec = aj.map_params(lean, lambda slot: "slot", lean.init(PARAMS))
    assert spec.of_them[0][0].mu["w"].codes == "slot"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wraps": {"other": "of_them"}}, "Broken has no field 'other', which its wraps or data_fields"),
        ({"data_fields": ("size",)}, "Broken has no field 'size'"),
        ({"wraps": {"several": "inner"}}, r"keeps states in \['inner'\], and its state_type has the"),
        ({"state_type": None}, r"its state_type has the entries \[\]"),
    ],
)  # fmt: skip
def test_what_an_author_forgets_is_said(fields, message):
    broken = dataclass(frozen=True)(type("Broken", (Mean,), fields))
    with pytest.raises(TypeError, match=message):
        broken((aj.sgd(0.1),))


def test_what_is_no_frozen_dataclass_or_no_transformation_is_refused():
    class Plain(Wrapper):
        pass

    with pytest.raises(TypeError, match="Plain is not a frozen dataclass: write @dataclass"):
        jax.tree.leaves(Plain())
    with pytest.raises(
        TypeError, match=r"Mean takes optax gradient transformations, got 3 of type"
    ):
        Mean((aj.sgd(0.1), 3))  # type: ignore[arg-type]

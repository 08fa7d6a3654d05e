"""What a rule says of its fields, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
MASKS = {
    "tree": {"w": True, "b": False},
    "function": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
}


@dataclass(frozen=True)
class Damped(aj.Rule):
    factor: aj.Hyper = 0.5
    damped: aj.Mask = None

    def update(self, grad, slots, param, ctx):
        return (grad * self.factor if ctx.selected else grad), {}


@dataclass(frozen=True)
class DampedByName(aj.Rule):
    """As rules were written before there was `aj.Mask`."""

    factor: aj.Hyper = 0.5
    mask: Any = None
    update = Damped.update


def made_in_a_function():
    from adaptive_jax import Hyper, Mask

    @dataclass(frozen=True)
    class Inside(aj.Rule):
        factor: Hyper = 0.5
        damped: Mask = None
        update = Damped.update

    return Inside


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rule", [Damped, DampedByName, made_in_a_function()])
def test_a_mask_selects_arrays_whatever_its_field_is_called(rule, mask):
    tx = aj.transform(rule(0.5, MASKS[mask]))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["w"], 0.5)
    np.testing.assert_array_equal(updates["b"], 1.0)


def test_without_a_mask_all_arrays_are_selected():
    updates, _ = aj.transform(Damped()).update(PARAMS, optax.EmptyState(), PARAMS)
    np.testing.assert_array_equal(updates["b"], 0.5)


def test_a_mask_is_static_and_equal_to_one_of_the_same_leaves():
    one, other = (aj.transform(Damped(0.5, {"w": True, "b": False})) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == [0.5]


def test_what_is_no_mask_is_refused():
    with pytest.raises(TypeError, match=r"mask\['w'\] is float32\[\]: a mask is a tree of True"):
        Damped(0.5, {"w": 1.0, "b": True})


def test_what_two_masks_say_is_a_pair():
    @dataclass(frozen=True)
    class Two(aj.Rule):
        first: aj.Mask = None
        second: aj.Mask = None

        def update(self, grad, slots, param, ctx):
            is_first, is_second = ctx.selected
            return grad * (1 + is_first + 2 * is_second), {}

    tx = aj.transform(Two({"w": True, "b": False}, lambda params: {"w": False, "b": True}))
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 2.0)
    np.testing.assert_array_equal(updates["b"], 3.0)
    assert aj.transform(Two()).update(1.0 * jnp.ones(()), (), None)[0] == 4.0


@pytest.mark.parametrize(
    ("rule", "rates"),
    [
        (aj.LearningRate(0.5), (0.5, 0.5)),
        (aj.LearningRate(lambda count: jnp.where(count < 1, 0.5, 0.125)), (0.5, 0.125)),
        (aj.LearningRate(0.5, learning_rate_decay=1.0), (0.5, 0.125)),
    ],
    ids=["constant", "schedule", "decay"],
)
def test_the_learning_rate_at_a_step_is_the_one_of_the_update(rule, rates):
    tx = aj.transform(rule)
    state = tx.init(PARAMS)
    for step in range(1, 5):
        updates, state = tx.update(PARAMS, state)
        if step in (1, 4):
            rate = rule.learning_rate_at(jnp.int32(step))
            np.testing.assert_allclose(rate, rates[step == 4])
            np.testing.assert_allclose(updates["b"], -rates[step == 4])


def test_a_rule_without_a_learning_rate_has_none():
    assert aj.rules.Adam().learning_rate_at(1) is None
    assert aj.WeightDecay(0.1, learning_rate=0.1).learning_rate_at(1) is None


def test_only_the_rule_that_measures_is_told_the_numbers():
    told = []

    @dataclass(frozen=True)
    class Told(aj.Rule):
        def update(self, grad, slots, param, ctx):
            told.append(dict(ctx.scalars))
            return grad, {}

    @dataclass(frozen=True)
    class Asking(Told):
        def measure(self, grad, slots, param, ctx):
            return {"sum": jnp.sum(grad)}

        def advance(self, scalars, measured, ctx):
            return {"sum": measured["sum"].sum()}

    tx = aj.transform(Told(), Asking(), Told())
    tx.update(PARAMS, tx.init(PARAMS))
    assert ["sum" in x for x in told] == [False, False, True, False, True, False]


def test_numbers_of_numpy_are_numbers_wherever_one_is_left_out():
    for zero in (0, 0.0, np.float32(0), np.int64(0)):
        assert "weight_decay" not in repr(aj.nadam(0.1, weight_decay=zero))
        assert "weight_decay=None" in repr(
            aj.adamw(0.1, weight_decay=zero)
        )  # Its default is another.


def test_a_rule_that_computes_with_what_it_does_not_ask_for():
    @dataclass(frozen=True)
    class Decaying(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad + 0.1 * param, {}

    @dataclass(frozen=True)
    class Falling(aj.Rule):
        needs_params = True

        def update(self, grad, slots, param, ctx):
            return grad / ctx.step, {}

    gradients = jnp.ones(2)
    decaying, falling = aj.transform(Decaying()), aj.transform(Falling())
    message = (
        r"Decaying.update computes with None \(.*: param is None.*needs_params = True; ctx.step"
    )
    with pytest.raises(TypeError, match=message):
        decaying.update(gradients, decaying.init(gradients))
    with pytest.raises(TypeError, match=r"Falling.update .*\): ctx.step is.*counts_steps = True"):
        falling.update(gradients, falling.init(gradients), gradients)

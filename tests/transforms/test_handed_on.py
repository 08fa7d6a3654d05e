"""What wrappers hand on to what is in them: extra arguments, and parameters that are exact."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj


@dataclass(frozen=True)
class Polyak(aj.Rule):
    """-(f - f*)/‖g‖² · g, with the norm of all gradients: Polyak's step."""

    lowest: aj.NonNegative = 0.0

    extra_args = {"value": "number"}

    def measure(self, grad, slots, param, ctx):
        return {"square": jnp.sum(jnp.square(grad))}

    def advance(self, scalars, measured, ctx):
        gap = ctx.extra["value"] - self.lowest
        return {"rate": gap / measured["square"].sum()}

    def update(self, grad, slots, param, ctx):
        return -ctx.scalars["rate"] * grad, {}


@dataclass(frozen=True)
class Newton(aj.Rule):
    """-g/h, with the last diagonal h of the Hessian that there was."""

    slots = {"hessian": aj.Slot(1.0, nonnegative=True)}
    extra_args = {"hessian_diagonal": "array", "has_hessian_diagonal": "number"}

    def update(self, grad, slots, param, ctx):
        has = ctx.extra["has_hessian_diagonal"].astype(bool)
        new = jnp.where(has, ctx.extra["hessian_diagonal"], slots["hessian"])
        new = ctx.store("hessian", new)
        return -grad / new, {"hessian": new}


@dataclass(frozen=True)
class TowardsStart(aj.Rule):
    """-g, and the norm of all parameters as it sees them."""

    needs_params = True
    scalars = {"norm": 0.0}
    slots = {"seen": aj.Slot()}

    def measure(self, grad, slots, param, ctx):
        return {"square": jnp.sum(jnp.square(param))}

    def advance(self, scalars, measured, ctx):
        return {"norm": jnp.sqrt(measured["square"].sum())}

    def update(self, grad, slots, param, ctx):
        return -0.01 * grad, {"seen": param}


@dataclass(frozen=True)
class FirstGradient(aj.Rule):
    """-g, as it came first."""

    needs_gradient = True

    def update(self, grad, slots, param, ctx):
        return -ctx.gradient, {}


PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
GRADIENTS = [{"a": jnp.array([1.0, 2.0]) * k, "b": jnp.array([[-1.0]]) + k} for k in range(1, 5)]
VALUES = [4.0, 2.0, 7.0, 3.0]


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def run(tx, calls, params=PARAMS):
    """The updates and the state after calls of update with (gradients, extra arguments)."""
    update, state, updates = jax.jit(tx.update), tx.init(params), None
    for gradients, extra in calls:
        updates, state = update(gradients, state, params, **extra)
    assert update._cache_size() == 1
    return updates, state


def assert_close(found, expected, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance), found, expected)


def test_the_value_of_a_group_is_the_mean_over_its_mini_steps():
    inner = aj.transform(Polyak())
    calls = [(g, {"value": v}) for g, v in zip(GRADIENTS, VALUES, strict=True)]
    updates, state = run(aj.multi_steps(inner, 2), calls)
    expected, _ = inner.update(
        mean(GRADIENTS[2:]), inner.init(PARAMS), value=jnp.float32(np.mean(VALUES[2:]))
    )
    assert_close(updates, expected)
    assert state.skip_state.extra_means.value == 0
    # Not finite in between: the group waits for another one.
    bad = (GRADIENTS[0], {"value": np.nan})
    updates, state = run(aj.multi_steps(inner, 2), [*calls[:3], bad, calls[3]])
    assert_close(updates, expected)
    assert state.skip_state.skipped == 1
    with pytest.raises(ValueError, match=r"Polyak\(.*needs the extra argument value"):
        run(aj.multi_steps(inner, 2), [(GRADIENTS[0], {})])


@pytest.mark.parametrize("chain", [aj.chain, optax.chain], ids=["ours", "optax's"])
def test_the_first_gradient_of_a_group_is_the_mean_over_its_mini_steps(chain):
    """Behind another member too, and not that of the last mini-step, which comes as `grad`."""
    tx = aj.multi_steps(chain(optax.scale(100.0), aj.transform(FirstGradient())), 2)
    updates, _ = run(tx, [(g, {"grad": g}) for g in GRADIENTS[:2]])
    assert_close(updates, jax.tree.map(jnp.negative, mean(GRADIENTS[:2])))


def test_a_tree_is_averaged_over_the_mini_steps_that_have_it():
    inner = aj.transform(Newton())
    has = [False, True, False, True, False, False, False, False, True]
    every = [GRADIENTS[i % 4] for i in range(9)]
    diagonals = [
        jax.tree.map(lambda x, i=i: 1.0 + i + jnp.square(x), g) for i, g in enumerate(every)
    ]
    calls = [
        (g, {"hessian_diagonal": d, "has_hessian_diagonal": h})
        for g, d, h in zip(every, diagonals, has, strict=True)
    ]
    tx = aj.multi_steps(inner, 4)
    _, state = run(tx, calls[:4])
    first = mean([diagonals[1], diagonals[3]])
    assert_close(state.inner_opt_state.hessian, first)
    updates, state = run(tx, calls[:8])  # The second group has none.
    assert_close(state.inner_opt_state.hessian, first)
    assert_close(updates, jax.tree.map(lambda g, h: -g / h, mean(every[4:8]), first))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


def test_gradients_that_are_missing_keep_their_means():
    inner = aj.transform(Newton())
    extra = {"hessian_diagonal": {"a": jnp.ones(2), "b": None}, "has_hessian_diagonal": True}
    updates, _ = run(aj.multi_steps(inner, 2), [({"a": jnp.ones(2), "b": None}, extra)] * 2)
    assert updates["b"] is None
    np.testing.assert_array_equal(updates["a"], -1.0)
    with pytest.raises(ValueError, match="the extra argument hessian_diagonal"):
        run(aj.multi_steps(inner, 2), [(PARAMS, extra)])


def test_a_tree_may_be_real_where_the_gradients_are_complex():
    params, inner = jnp.array([1.0 + 2.0j, 3.0j]), aj.transform(Newton())
    calls = [
        (params, {"hessian_diagonal": jnp.full(2, h), "has_hessian_diagonal": 1.0})
        for h in (2.0, 6.0)
    ]
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = run(aj.multi_steps(inner, 2), calls, params)
    np.testing.assert_allclose(updates, -params / 4.0)


def test_the_state_is_as_ever_where_nothing_asks_for_extra_arguments():
    state = aj.multi_steps(aj.adam(0.1), 2).init(PARAMS)
    assert type(state.skip_state).__name__ == "SkipState"
    with pytest.raises(
        ValueError, match=r"SkipAndMeansState\(skipped, extra_means\), got SkipState"
    ):
        aj.multi_steps(aj.transform(Polyak()), 2).update(PARAMS, state, PARAMS, value=1.0)


def test_the_gradient_as_it_came_is_the_mean_of_a_group():
    tx = aj.multi_steps(aj.chain(aj.clip(0.1), aj.transform(FirstGradient())), 2)
    calls = [(g, {"grad": g, "value": 1.0}) for g in GRADIENTS[:2]]
    assert_close(run(tx, calls)[0], jax.tree.map(jnp.negative, mean(GRADIENTS[:2])))
    around = aj.chain(aj.clip(10.0), aj.multi_steps(aj.transform(FirstGradient()), 2))
    assert_close(run(around, calls)[0], jax.tree.map(jnp.negative, mean(GRADIENTS[:2])))


WRAPPERS = {
    "chain": lambda tx: aj.chain(aj.clip_by_global_norm(1e3), tx),
    "skip_nonfinite": aj.skip_nonfinite,
    "compensate": aj.compensate,
    "monitor": lambda tx: aj.chain(aj.monitor({"norm": aj.global_norm}), tx),
    "diagnose": aj.diagnose,
    "optax.chain": lambda tx: optax.chain(optax.identity(), tx),
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "all of them": lambda tx: aj.compensate(aj.skip_nonfinite(aj.chain(aj.diagnose(tx)))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_hand_extra_arguments_on(wrapper):
    tx, inner = WRAPPERS[wrapper](aj.transform(Polyak(1.0))), aj.transform(Polyak(1.0))
    updates, _ = tx.update(GRADIENTS[1], tx.init(PARAMS), PARAMS, value=4.0, other="x")
    assert_close(updates, inner.update(GRADIENTS[1], inner.init(PARAMS), value=4.0)[0])


def test_an_extra_argument_that_is_not_finite_is_skipped():
    """It would stay in the state of the rule."""
    tx = aj.skip_nonfinite(aj.transform(Newton()))
    extra = {"hessian_diagonal": jax.tree.map(lambda x: x / 0, PARAMS), "has_hessian_diagonal": 1}
    updates, state = run(tx, [(GRADIENTS[0], extra)])
    assert state.total == 1
    assert not np.any(updates["a"])
    np.testing.assert_array_equal(state.inner_state.hessian["a"], 1.0)


@pytest.mark.parametrize("correction", ["parameter", "int8"])
def test_what_is_compensated_sees_exact_parameters(correction):
    """Those of a float32 run, and not rounded to bfloat16."""
    start = jnp.asarray(np.random.default_rng(0).normal(size=300), jnp.bfloat16)
    tx = aj.compensate(aj.transform(TowardsStart()), correction)
    state, params, update = tx.init(start), start, jax.jit(tx.update)
    reference = start.astype(jnp.float32)
    gradient = jnp.full(300, 0.1, jnp.bfloat16)
    for _ in range(20):
        exact = aj.exact_params(params, state)
        updates, state = update(gradient, state, params)
        np.testing.assert_array_equal(state.inner_state.seen, exact)
        np.testing.assert_allclose(state.inner_state.norm, np.linalg.norm(exact), rtol=1e-6)
        params = aj.apply_updates(params, updates)
        reference = reference - jnp.bfloat16(0.01 * gradient).astype(jnp.float32)
    assert params.dtype == jnp.bfloat16
    assert jnp.abs(aj.exact_params(params, state) - reference).max() < 20 * 2.0**-15
    assert jnp.abs(params.astype(jnp.float32) - reference).max() > 2.0**-10


def test_other_libraries_transformations_see_compensated_parameters_in_their_own_dtype():
    """So that their states, made for it, keep their dtypes."""
    seen = []

    def update(updates, state, params=None):
        seen.append(params.dtype)
        return updates, state

    spy = optax.GradientTransformation(lambda params: (), update)
    ours = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-1e-2), spy)
    params = jnp.ones(4, jnp.bfloat16)
    for inner in (ours, aj.chain(aj.clip(1.0), aj.skip_nonfinite(ours))):
        tx = aj.compensate(inner)

        def body(carry, _, tx=tx):
            params, state = carry
            updates, state = tx.update(jnp.ones_like(params), state, params)
            return (aj.apply_updates(params, updates), state), None

        (found, _), _ = jax.lax.scan(body, (params, tx.init(params)), None, 5)
        assert found.dtype == jnp.bfloat16
        assert seen.pop() == jnp.bfloat16

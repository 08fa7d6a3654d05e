"""The parameters to evaluate with."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.test_whole_tree import PARAMS, assert_close, gradient, run
from core.whole_tree_rules import Averaged, ScheduleFree

import adaptive_jax as aj


def averages(found, decay=0.5):
    mean = {k: np.float64(x) for k, x in PARAMS.items()}
    for params in found:
        mean = {k: decay * mean[k] + (1 - decay) * np.float64(params[k]) for k in mean}
    return mean


def test_schedule_free_evaluates_at_x():
    params = {k: np.float64(x) for k, x in PARAMS.items()}
    x, z, y, total = params, params, params, 0.0
    for step in range(1, 6):
        rate = 0.2 * min(step / 3, 1)
        total += rate**2
        c = rate**2 / total
        z = {k: z[k] - rate * g for k, g in gradient(y).items()}
        x = {k: (1 - c) * x[k] + c * z[k] for k in x}
        y = {k: 0.9 * x[k] + 0.1 * z[k] for k in x}
    tx = aj.transform(ScheduleFree(0.2, warmup_steps=3))
    found, state = run(tx, 5)
    assert_close(found[-1:], [y])
    assert_close([aj.eval_params(tx, found[-1], state)], [x])
    assert_close([jax.jit(aj.eval_params)(tx, found[-1], state)], [x])


WRAPPED = {
    "chain": lambda tx: aj.chain(optax.clip(1e3), tx, aj.monitor({"norm": aj.global_norm})),
    "skip": aj.skip_nonfinite,
    "multi_steps": lambda tx: aj.multi_steps(tx, 1),
    "diagnose": lambda tx: aj.chain(aj.diagnose(tx)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_inside_of_wrappers(wrap):
    tx = wrap(aj.transform(aj.LearningRate(0.1), Averaged()))
    state = tx.init(PARAMS)
    for name, param in aj.eval_params(tx, PARAMS, state).items():
        np.testing.assert_array_equal(param, PARAMS[name])
    found, state = run(tx, 4)
    assert_close([aj.eval_params(tx, found[-1], state)], [averages(found)])


def test_corrections_come_first():
    @dataclass(frozen=True)
    class Doubled(aj.Rule):
        def update(self, grad, slots, param, ctx):
            return grad, {}

        def evaluate(self, param, slots, ctx):
            return 2 * param

    tx = aj.compensate(aj.transform(aj.LearningRate(1e-3), Doubled()))
    params = jnp.ones((), jnp.bfloat16)
    updates, state = tx.update(params, tx.init(params), params)
    params = aj.apply_updates(params, updates)
    assert params == 1
    np.testing.assert_allclose(aj.eval_params(tx, params, state), 2 * 0.999, rtol=1e-4)
    plain = aj.adam(0.1)
    low = {"w": jnp.ones(2, jnp.bfloat16), "none": None, "n": 3, "f": jnp.tanh}
    found = aj.eval_params(
        plain, low, plain.init({"w": low["w"], "none": None, "n": None, "f": None})
    )
    assert (found["w"].dtype, found["n"], found["f"]) == (jnp.float32, 3, jnp.tanh)


def test_it_is_as_of_the_last_update():
    @dataclass(frozen=True)
    class Seen(aj.Rule):
        factor: aj.Hyper = 1.0
        b: aj.Decay = 0.5
        slots = {"sum": aj.Slot()}
        scalars = {"steps": 0.0}

        def advance(self, scalars, measured, ctx):
            return {"steps": scalars["steps"] + 1}

        def update(self, grad, slots, param, ctx):
            return grad, {"sum": slots["sum"] + self.factor / self.b.correction}

        def evaluate(self, param, slots, ctx):
            of_step = self.factor / aj.maths.bias_correction(self.b, ctx.step)
            return jnp.stack([of_step * 1000 + ctx.scalars["steps"] * 100, slots["sum"][1]])

    def factor(count):
        return count.astype(jnp.float32) + 1

    def decay(count):
        return 0.5 / (count.astype(jnp.float32) + 1)

    for b, corrections in ((0.5, [0.5, 0.75]), (decay, [0.5, 0.875])):
        tx = aj.transform(Seen(factor, b))
        params = jnp.ones(2)
        state = tx.init(params)
        np.testing.assert_array_equal(aj.eval_params(tx, params, state), params)
        expected = 0.0
        for step, correction in enumerate(corrections, 1):
            _, state = tx.update(params, state)
            expected += step / correction
            found = aj.eval_params(tx, params, state)
            np.testing.assert_allclose(found[0], 1000 * step / correction + 100 * step, rtol=1e-5)
            np.testing.assert_allclose(found[1], expected, rtol=1e-5)


def test_scalars_of_each_array():
    @dataclass(frozen=True)
    class Far(aj.Rule):
        layerwise: bool = True
        scalars = {"largest": 0.0}

        def measure(self, grad, slots, param, ctx):
            return {"largest": jnp.max(jnp.abs(grad))}

        def advance(self, scalars, measured, ctx):
            return {"largest": measured["largest"].max()}

        def update(self, grad, slots, param, ctx):
            return grad, {}

        def evaluate(self, param, slots, ctx):
            return jnp.full_like(param, ctx.scalars["largest"])

    params = {**PARAMS, "empty": jnp.ones((0, 2)), "none": None}
    for layerwise, expected in ((True, (2.0, 3.0)), (False, (3.0, 3.0))):
        tx = aj.transform(Far(layerwise))
        _, state = tx.update(params, tx.init(params))
        found = aj.eval_params(tx, params, state)
        assert (found["w"][0, 0], found["b"][0]) == expected
        assert (found["empty"].shape, found["none"]) == ((0, 2), None)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_slots_are_read_from_their_storage(storage):
    params = jnp.linspace(-1, 1, 5000)
    tx = aj.transform(Averaged(), storage=storage)
    np.testing.assert_allclose(aj.eval_params(tx, params, tx.init(params)), params)
    _, state = tx.update(0 * params, tx.init(params), params)
    np.testing.assert_allclose(aj.eval_params(tx, params, state), params, atol=0.06)
    many = jax.vmap(tx.init)(jnp.stack([params, -params]))
    found = jax.vmap(lambda p, s: aj.eval_params(tx, p, s))(jnp.stack([params, -params]), many)
    np.testing.assert_allclose(found[1], -params)


def test_two_rules_that_evaluate_are_refused():
    with pytest.raises(ValueError, match=r"ScheduleFree\(.* and Averaged\(.* both evaluate with"):
        aj.transform(ScheduleFree(0.1), Averaged())
    with pytest.raises(ValueError, match=r"Averaged\(.* and ScheduleFree\(.* both evaluate with"):
        aj.chain(aj.transform(Averaged()), aj.skip_nonfinite(aj.transform(ScheduleFree(0.1))))


def test_what_lies_in_another_librarys_wrapper():
    everything = jax.tree.map(lambda x: True, PARAMS)
    for tx in (optax.adam(0.1), optax.masked(aj.nadam(0.1), everything), optax.chain(aj.adam(0.1))):
        found = aj.eval_params(tx, PARAMS, tx.init(PARAMS))
        np.testing.assert_array_equal(found["b"], PARAMS["b"])
    hidden = optax.masked(aj.transform(Averaged()), everything)
    for tx in (hidden, aj.chain(hidden, aj.sgd(0.1))):
        with pytest.raises(
            ValueError, match=r"AveragedState is the state of a rule .*lies in masked"
        ):
            aj.eval_params(tx, PARAMS, tx.init(PARAMS))
    tx = optax.chain(aj.compensate(aj.sgd(1e-3)))
    params = jnp.ones((), jnp.bfloat16)
    _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(aj.eval_params(tx, params, state), 0.999, rtol=1e-4)


def test_mistakes_are_named():
    @dataclass(frozen=True)
    class Wrong(aj.Rule):
        kind: str

        def update(self, grad, slots, param, ctx):
            return grad, {}

        def evaluate(self, param, slots, ctx):
            return jnp.sum(param) if self.kind == "sum" else ctx.store("mu", param)

    def evaluated(kind):
        tx = aj.transform(Wrong(kind))
        return aj.eval_params(tx, PARAMS, tx.init(PARAMS))

    with pytest.raises(
        ValueError, match=r"Wrong.evaluate returned float32\[\], where the array has"
    ):
        evaluated("sum")
    with pytest.raises(
        AttributeError, match=r"Wrong.evaluate asks for ctx.store: nothing is updated"
    ):
        evaluated("store")
    with pytest.raises(ValueError, match="the state was made by another optimizer"):
        aj.eval_params(aj.transform(Averaged()), PARAMS, aj.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="the state was made by another optimizer"):
        aj.eval_params(aj.adam(0.1), PARAMS, aj.transform(Averaged()).init(PARAMS))

    @dataclass(frozen=True)
    class Short(Wrong):
        def evaluate(self, param, slots):
            return param

    with pytest.raises(
        TypeError, match=r"Short.evaluate takes \(self, param, slots\): it must take"
    ):
        aj.transform(Short(""))

"""`check_rule` passes a good rule of a user's own, and names the promise that a bad one breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax.testing import BrokenPromise, check_rule


@dataclass(frozen=True)
class Yogi(aj.Rule):
    """Zaheer et al. 2018: ν ← ν - (1-β₂)·sign(ν - g²)·g²."""

    b1: aj.Hyper = 0.9
    b2: aj.Hyper = 0.999
    eps: aj.Hyper = 1e-3
    slots = {"mu": aj.Slot(), "nu": aj.Slot(initial=1e-6, nonnegative=True)}

    def update(self, grad, slots, param, ctx):
        square = jnp.minimum(jnp.abs(grad), 1e18) ** 2
        mu = ctx.store("mu", self.b1 * slots["mu"] + (1 - self.b1) * grad)
        nu = slots["nu"] - (1 - self.b2) * jnp.sign(slots["nu"] - square) * square
        nu = ctx.store("nu", nu)
        mu_hat = mu / (1 - self.b1**ctx.step)
        nu_hat = nu / (1 - self.b2**ctx.step)
        return mu_hat / (jnp.sqrt(nu_hat) + self.eps), {"mu": mu, "nu": nu}


def test_a_decay_rate_in_arithmetic():
    """A reader of the paper writes b·m + (1-b)·g: it works, and 1 - b is exact."""

    @dataclass(frozen=True)
    class Average(aj.Rule):
        b: aj.Decay = 0.999
        slots = {"mean": aj.Slot()}

        def update(self, grad, slots, param, ctx):
            mean = ctx.store("mean", self.b * slots["mean"] + (1 - self.b) * grad)
            same = (slots["mean"] * self.b + self.b - self.b, 1 / self.b, self.b**2, self.b / 2)
            return mean / aj.maths.bias_correction(self.b, ctx.step) + 0 * sum(same), {"mean": mean}

    tx = aj.transform(Average())
    state = tx.init(jnp.ones(2))
    for gradient in (1.0, 2.0):
        updates, state = tx.update(jnp.full(2, gradient), state)
    expected = (0.999 * 0.001 * 1.0 + 0.001 * 2.0) / (1 - 0.999**2)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        check_rule(Average())


def test_a_users_own_rule_passes_and_equals_optax():
    with jax.numpy_dtype_promotion("standard"):
        check_rule(Yogi())
        params = {"w": jnp.array([1.0, -2.0, 0.5])}
        ours, theirs = aj.transform(Yogi(), aj.LearningRate(0.1)), optax.yogi(0.1)
        state, expected_state = ours.init(params), theirs.init(params)
        for step in range(20):
            gradients = {"w": jnp.cos(step + params["w"])}
            updates, state = ours.update(gradients, state, params)
            expected, expected_state = theirs.update(gradients, expected_state, params)
            np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-3)


class Broken(aj.Rule):
    """The start of a rule that breaks a promise."""

    slots = {"nu": aj.Slot(nonnegative=True)}


@dataclass(frozen=True)
class Branches(Broken):
    rate: aj.Hyper = 0.1

    def update(self, grad, slots, param, ctx):
        return (grad if self.rate > 0 else -grad), dict(slots)


@dataclass(frozen=True)
class Overflows(Broken):
    def update(self, grad, slots, param, ctx):
        nu = slots["nu"] + jnp.abs(grad) ** 2
        return grad / (jnp.sqrt(nu) + 1e-8) * nu, {"nu": nu}


@dataclass(frozen=True)
class DividesByZero(Broken):
    def update(self, grad, slots, param, ctx):
        return grad / jnp.abs(grad), dict(slots)


@dataclass(frozen=True)
class Hides(Broken):
    def update(self, grad, slots, param, ctx):
        return jnp.nan_to_num(grad), dict(slots)


@dataclass(frozen=True)
class Mixes(Broken):
    def update(self, grad, slots, param, ctx):
        return grad.astype(jnp.float16).astype(grad.dtype) / 3, dict(slots)


@dataclass(frozen=True)
class RefusesComplexRudely(Broken):
    def update(self, grad, slots, param, ctx):
        if jnp.iscomplexobj(grad):
            raise TypeError("no")
        return grad, dict(slots)


@dataclass(frozen=True)
class RefusesComplex(Broken):
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        return jnp.clip(grad, -1, 1) + 0 * grad, dict(slots)


def test_a_rule_may_refuse_complex_arrays():
    check_rule(RefusesComplex())
    params = {"w": jnp.ones(2, jnp.complex64)}
    with pytest.raises(
        TypeError, match=r"params\['w'\] is complex64\[2\]: RefusesComplex takes no"
    ):
        aj.transform(RefusesComplex()).init(params)


@dataclass(frozen=True)
class Drifts(Broken):
    def update(self, grad, slots, param, ctx):
        return grad + 1e-3, dict(slots)


@dataclass(frozen=True)
class Impure(Broken):
    calls: Any = ()

    def update(self, grad, slots, param, ctx):
        COUNTER.append(None)
        return grad * len(COUNTER), dict(slots)


COUNTER: list[None] = []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Branches(), r"breaks a promise: it works under jit"),
        (Overflows(), r"finite gradients give finite updates.* huge, up to .* make the \w+ at .*w"),
        (DividesByZero(), r"zero-size|finite|zero"),
        (Hides(), r"not finite stays visible.*A gradient that is nan"),
        (Mixes(), r"finite gradients give finite updates"),
        (RefusesComplexRudely(), r"complex parameters work.*takes_complex = False"),
        (Drifts(), r"zero gradients from the start give zero updates"),
        (Impure(), r"it works under jit"),
    ],
)
def test_broken_promises_are_named(rule, message):
    with pytest.raises(BrokenPromise, match=f"{type(rule).__name__}.*{message}"):
        check_rule(rule)


def test_it_finds_what_is_known_of_optax():
    # Its state is in float16, where a large square is infinite.
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(BrokenPromise, match="float16 gradients that are huge"),
    ):
        check_rule(optax.adam(0.1))


def test_a_hyperparameter_that_is_no_data():
    @dataclass(frozen=True)
    class Static(aj.Rule):
        decay: float = 0.9

        def update(self, grad, slots, param, ctx):
            return self.decay * grad, {}

    with pytest.raises(BrokenPromise, match=r"\['decay'\] of Static are static.*aj\.Hyper"):
        check_rule(Static())
    with pytest.raises(TypeError, match=r"not its class: Static\("):
        check_rule(Static)


def test_a_slot_that_is_negative_after_all():
    @dataclass(frozen=True)
    class Signed(aj.Rule):
        decay: aj.Decay = 0.9
        slots = {"mu": aj.Slot(nonnegative=True)}

        def update(self, grad, slots, param, ctx):
            mu = ctx.store("mu", aj.maths.ema(aj.maths.bounded(grad), slots["mu"], self.decay))
            return mu, {"mu": mu}

    with pytest.raises(BrokenPromise, match=r"'mu' of Signed.* has negative entries|complex"):
        check_rule(Signed())

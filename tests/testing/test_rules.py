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
from adaptive_jax.testing import PROMISES, BrokenPromise, check_rule
from adaptive_jax.testing.whole_tree import WHOLE_TREE_PROMISES


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


# Each promise, and the ways to break it


def rule(update, *slots, **attributes):
    """The transformation of a rule, with slots that start at 0."""
    members = {"slots": {name: aj.Slot() for name in slots}, "update": update, **attributes}
    return aj.transform(dataclass(frozen=True)(type("Unnamed", (aj.Rule,), members))())


def of_gradient(function):
    """A rule without state, of a function of the gradient."""
    return rule(lambda self, grad, slots, param, ctx: (function(grad), {}))


def of_last(function):
    """A rule of a function of the last gradient and this one."""

    def update(self, grad, slots, param, ctx):
        return function(slots["last"], grad), {"last": grad}

    return rule(update, "last")


def at_rank(rank, function):
    """A rule that leaves arrays of all other ranks alone."""
    return of_gradient(lambda grad: function(grad) if grad.ndim == rank else grad)


def optax_like(update=lambda updates, state: (updates, state), init=lambda params: ()):
    """A transformation that is none of this library."""
    return optax.GradientTransformation(init, lambda updates, state, _=None: update(updates, state))


def of_array(function):
    """Such a transformation, of a function of each gradient."""
    return optax_like(lambda updates, state: (jax.tree.map(function, updates), state))


def is_known(array):
    return not isinstance(array, jax.core.Tracer)


def refuse(condition):
    if condition:
        raise TypeError("it is refused")


def refuses_complex(params):
    refuse(any(map(jnp.iscomplexobj, jax.tree.leaves(params))))
    return ()


def counts_traces():
    """Something else each time that it is traced."""
    calls = []

    def update(updates, state):
        calls.append(None)
        return jax.tree.map(lambda x: x * len(calls), updates), state

    return optax_like(update)


def widens(rank=None):
    """A state that starts in int32, and goes on in float32: that of arrays of a rank, or of all."""
    return optax_like(
        lambda updates, state: (updates, [x.astype(jnp.float32) for x in state]),
        lambda params: [
            jnp.zeros((), jnp.int32 if rank in (None, x.ndim) else jnp.float32)
            for x in jax.tree.leaves(params)
        ],
    )


@jax.custom_batching.custom_vmap
def doubled_under_vmap(x):
    return x


@doubled_under_vmap.def_vmap
def _(size, is_batched, x):
    return 2 * x, is_batched[0]


def through_numpy(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def longer_if_traced(params):
    return jnp.zeros(1 if all(map(is_known, jax.tree.leaves(params))) else 2)


def unless_zero(x, function):
    return jnp.where(x == 0, 0, function(jnp.where(x == 0, 1, x)))


def none_is_zero(updates, state):
    return jax.tree.map(
        lambda x: 0 if x is None else x, updates, is_leaf=lambda x: x is None
    ), state


def halves_state(updates, state):
    return updates, jax.tree.map(lambda x: x / 2, state)


def needs_an_array(updates, state):
    return updates, jnp.zeros(jax.tree.leaves(updates)[0].shape)


def like(function):
    return lambda params: jax.tree.map(function, params)


WAYS = {
    "it works under jit and without": [
        (of_gradient(lambda g: refuse(is_known(g)) or g), "it is refused"),
        (of_gradient(lambda g: 2 * g if is_known(g) else g), r"without jit: at .*'matrix'"),
        (at_rank(1, lambda g: refuse(True)), "it is refused"),
        (of_array(lambda g: g if np.all(g > 0) else -g), "TracerArrayConversion|traced array"),
        (counts_traces(), r"(under|without) jit: at .*'matrix'"),
    ],
    "its state keeps structure, shapes and dtypes, so nothing compiles twice": [
        (widens(), "changes the state from .*int32.* to .*float32"),
        (widens(rank=1), "changes the state from .*int32.* to .*float32"),
        (optax_like(halves_state, lambda _: jnp.asarray(1.0)), "weakly typed entries"),
    ],
    "it works in a scan": [
        (counts_traces(), "a scan: at .*'matrix'"),
        (widens(), "carry"),
    ],
    "it works under vmap": [
        (of_gradient(doubled_under_vmap), "under vmap: at .*'matrix'"),
        (of_array(through_numpy), "vmap"),
        (at_rank(1, doubled_under_vmap), "under vmap: at .*'nested'"),
        (optax_like(init=longer_if_traced), "under vmap|shape"),
    ],
    "it works under cond and eval_shape": [
        (optax_like(init=longer_if_traced), "eval_shape of init differs from init"),
        (of_array(lambda g: g.astype(jnp.bfloat16)), "bfloat16"),
        (widens(rank=1), "int32"),
        (counts_traces(), "under lax.cond: at .*'matrix'"),
    ],
    "finite gradients give finite updates": [
        (of_array(lambda g: g * g), "float16 .* huge, up to 1.02e"),
        (at_rank(2, lambda g: g * g), r"huge, up to 5.*e\+36, make the update at \['matrix'\] inf"),
        (
            rule(lambda self, g, slots, param, ctx: (g, {"nu": g * g}), "nu"),
            "huge, .* state at .*nu",
        ),
        (
            of_last(lambda last, g: jnp.exp(jnp.abs(g - last) - 1100)),
            "float16 gradients that are huge, of both signs",
        ),
        (
            of_last(lambda last, g: jnp.where(last == 0, 0, last / g)),
            "float16 gradients that are huge once, then zero",
        ),
        (
            of_gradient(lambda g: unless_zero(g, lambda g: 10 / g)),
            "gradients that are the smallest normal number",
        ),
        (
            of_gradient(lambda g: unless_zero(g, lambda g: 1e32 / g)),
            "float16 gradients that are denormal numbers",
        ),
        (
            of_last(lambda last, g: (last / jnp.where(g == 0, 1e9, g)) ** 6),
            "float16 gradients that are numbers of all sizes",
        ),
        (
            rule(lambda self, g, slots, p, ctx: (0 * g, {"sum": 22 * slots["sum"] + g}), "sum"),
            "float16 gradients that are a constant",
        ),
    ],
    "zero gradients from the start give zero updates": [
        (of_gradient(lambda g: g + 1e-3), "in float16"),
        (at_rank(0, lambda g: g / jnp.abs(g)), "in float32"),
        (of_array(lambda g: g / (jnp.abs(g) + jnp.asarray(1e-8, g.dtype))), "nan.* in float16"),
        (of_array(lambda g: g + (g.dtype == jnp.float32)), "in float32"),
    ],
    "it moves from the first update on, or says that this only initialises": [
        (of_last(lambda last, grad: last), r"Update 1 leaves .*\['matrix'\].* where they are"),
        (
            rule(
                lambda self, g, slots, param, ctx: (g, {"last": g}), "last", only_initialises=True
            ),
            "says that its first update only initialises, and it moves",
        ),
        (
            rule(
                lambda self, g, slots, p, ctx: (0 * g, {"last": g}), "last", only_initialises=True
            ),
            "Update 2 leaves",
        ),
    ],
    "a gradient that is not finite stays visible": [
        (of_gradient(jnp.nan_to_num), r"that is nan at \['matrix'\] gives the update \[\[0.0,"),
        (of_gradient(lambda g: jnp.where(jnp.isinf(g), 0, g)), "that is inf at"),
        (at_rank(0, jnp.nan_to_num), r"that is nan at \['scalar'\] gives"),
        (of_array(lambda g: jnp.nan_to_num(g) if g.dtype == jnp.bfloat16 else g), "in bfloat16"),
    ],
    "its maths is in float32 at least, and an update has its gradient's dtype": [
        (
            of_array(lambda g: (g + 1000) - 1000),
            "float16 maths is not float32 maths: at .*'matrix'",
        ),
        (of_array(lambda g: g.astype(jnp.float32)), "is float32, its gradient float16"),
        (
            optax_like(lambda updates, state: (updates, updates), like(jnp.zeros_like)),
            "With float16 parameters, the dtype of the gradients changes the state",
        ),
    ],
    "float64 stays float64, and float32 stays float32": [
        (of_array(lambda g: g.astype(jnp.float32)), "is float32, its gradient float64"),
        (optax_like(init=lambda _: jnp.zeros(3, jnp.float32)), "float64 parameters is float32"),
        (optax_like(init=lambda _: jnp.zeros(3)), "float32 parameters is float64"),
    ],
    "complex parameters work, or are refused by name": [
        (aj.transform(RefusesComplexRudely()), "takes_complex = False"),
        (optax_like(init=refuses_complex), "refused without a name: it is refused"),
        (of_array(jnp.abs), "is float32, its gradient complex64"),
        (
            optax_like(lambda updates, state: (updates, updates), like(lambda x: x.real)),
            "changes the state of complex parameters",
        ),
    ],
    "it can be differentiated, at zero too": [
        (of_gradient(lambda g: jnp.sqrt(jnp.abs(g))), "not finite, for zero gradients"),
        (
            rule(lambda self, g, slots, p, ctx: (g * jnp.sqrt(0 * p), {}), needs_params=True),
            "not finite, for random gradients",
        ),
    ],
    "None, empty trees, zero-size and scalar arrays just work": [
        (optax_like(none_is_zero), "update of a None gradient is not None"),
        (optax_like(halves_state, like(jnp.ones_like)), "changes the slots of its parameter"),
        (optax_like(needs_an_array), "index out of range"),
        (at_rank(0, lambda g: refuse(True)), "it is refused"),
        (of_array(lambda g: refuse(not g.size) or g), "it is refused"),
    ],
    "it works inside the wrappers of optax": [
        (counts_traces(), r"inside optax\.chain: at .*'matrix'"),
        (widens(), r"inside optax\.apply_if_finite: .*int32"),
        (optax_like(init=lambda params: jnp.zeros(params["matrix"].shape)), "Placeholder"),
    ],
    "its state is a stable format that a run can continue from": [
        (
            optax_like(
                lambda updates, state: (updates, state.at[0].add(1)), lambda _: jnp.zeros(1)
            ),
            "no attribute 'at'",
        ),
    ],
    "a slot that is declared never to be negative is not": [
        (
            rule(
                lambda self, g, slots, param, ctx: (g, {"nu": g}),
                slots={"nu": aj.Slot(nonnegative=True)},
            ),
            "'nu' of Unnamed.* has negative entries",
        ),
    ],
    "its hyperparameters are data": [
        (
            aj.transform(aj.LearningRate(jax.tree_util.Partial(lambda n, count: 1 / n, 10))),
            "compiles again",
        ),
    ],
}


def test_ways_to_break_every_promise():
    assert list(WAYS) == [each for each in PROMISES if each not in WHOLE_TREE_PROMISES]


@pytest.mark.parametrize(
    ("promise", "place"),
    [(promise, place) for promise, ways in WAYS.items() for place in range(len(ways))],
)
def test_each_promise_alone_is_broken(promise, place):
    tx, message = WAYS[promise][place]
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(Exception, match=f"(?s){message}"),
    ):
        PROMISES[promise](tx)


# Promises that are not meant

HIDDEN = "a gradient that is not finite stays visible"
WHY = "what is not finite is taken for 0"


def test_a_promise_that_is_expected_to_break():
    tx = of_gradient(jnp.nan_to_num)
    with pytest.raises(BrokenPromise, match=f"breaks a promise: {HIDDEN}"):
        check_rule(tx)
    check_rule(tx, expected={HIDDEN: WHY})


def test_an_expected_promise_that_holds():
    data = "its hyperparameters are data"
    with pytest.raises(
        BrokenPromise, match=rf"'{HIDDEN}' is expected to break, but holds: take it out.*{WHY}"
    ):
        check_rule(aj.rules.Identity(), expected={HIDDEN: WHY})
    # What breaks beside it is told as ever.
    with pytest.raises(BrokenPromise, match="breaks a promise: it works under jit"):
        check_rule(Branches(), expected={data: "it does not break"})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            {"it works under vmp": WHY},
            r"'it works under vmp', which is no promise. The closest are",
        ),
        ({"it works under vmp": WHY}, r"\['it works under vmap'"),
        ({"?": WHY}, r"'\?', which is no promise. The promises are \['it works under jit and"),
        ({HIDDEN: ""}, f"'{HIDDEN}'.* must say why .*; got ''"),
        ({HIDDEN: None}, f"'{HIDDEN}'.* must say why .*; got None"),
        ({HIDDEN}, "expected maps promises to reasons"),
        ([HIDDEN], "expected maps promises to reasons"),
        (HIDDEN, "expected maps promises to reasons"),
    ],
)
def test_what_expected_must_be(expected, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_rule(aj.rules.Identity(), expected=expected)


def test_what_looks_at_arrays_that_are_there_is_found():
    def refuses_vectors(gradient):
        if gradient.ndim == 1 and not isinstance(gradient, jax.core.Tracer):
            raise TypeError("no vectors here")
        return gradient

    tx = optax.stateless(lambda updates, params: jax.tree.map(refuses_vectors, updates))
    with pytest.raises(BrokenPromise, match=r"it works under jit and without\. no vectors here"):
        check_rule(tx)

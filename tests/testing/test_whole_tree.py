"""`check_rule` on rules that see the whole tree or matrices: good ones pass, bad ones are told why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from core import matrix_rules, whole_tree_rules

import adaptive_jax as aj
from adaptive_jax import maths
from adaptive_jax._core.transformation import Transformation
from adaptive_jax._core.wrapper import Wrapper
from adaptive_jax.testing import PROMISES, BrokenPromise, check_rule
from adaptive_jax.testing.promises import check_promises
from adaptive_jax.testing.trials import Trial
from adaptive_jax.testing.whole_tree import WHOLE_TREE_PROMISES

MATRICES, CONSTANT, SCALARS, TREES, CUT, EVALUATES_AT_FIRST, EVALUATES = WHOLE_TREE_PROMISES

FINITE = "finite gradients give finite updates"
ZERO = "zero gradients from the start give zero updates"
VISIBLE = "a gradient that is not finite stays visible"
COMPLEX = "complex parameters work, or are refused by name"
DIFFERENTIATED = "it can be differentiated, at zero too"
NO_FLOOR = {
    FINITE: "it divides by a norm without a floor",
    ZERO: "it divides by a norm without a floor",
    DIFFERENTIATED: "it divides by a norm without a floor",
}

GOOD = [
    (whole_tree_rules.ScheduleFree(0.1), {}),
    (
        whole_tree_rules.AdaGradNorm(),
        {
            FINITE: "its sum of squares is not bounded",
        },
    ),
    (matrix_rules.Adaptive(), {}),
]
"""Rules of a user's own, and the promises that are not meant for them, with why."""

MORE = [
    (whole_tree_rules.StochasticPolyak(), {}),
    (
        whole_tree_rules.AdaGradNorm(layerwise=True),
        {
            FINITE: "its sum of squares is not bounded",
        },
    ),
    (
        whole_tree_rules.Cautious(),
        {
            VISIBLE: "what is NaN agrees with nothing, and its step is left out",
            COMPLEX: "it does not say that it compares signs",
        },
    ),
    (whole_tree_rules.AdaHessian(), {}),
    (whole_tree_rules.Sums(), {}),
    (whole_tree_rules.Prodigy(), {}),
    (whole_tree_rules.DistanceOverGradients(), {}),
    (whole_tree_rules.DistanceOverGradients(layerwise=True), {}),
    (whole_tree_rules.Averaged(), {}),
    (
        whole_tree_rules.RowsAndColumns(),
        {
            FINITE: "it takes the mean of no rows",
            ZERO: "its mean is divided by itself",
            DIFFERENTIATED: "√ has no slope at 0",
        },
    ),
    (whole_tree_rules.OneSidedShampoo(), {FINITE: "GGᵀ is not bounded"}),
    (matrix_rules.Told(), {}),
    (matrix_rules.Muon(), NO_FLOOR),
    (matrix_rules.Factored(), NO_FLOOR),
]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        *(pytest.param(*each, id=repr(each[0])) for each in GOOD),
        *(pytest.param(*each, id=repr(each[0]), marks=pytest.mark.slow) for each in MORE),
    ],
)
def test_a_users_own_rule(rule, expected):
    with jax.numpy_dtype_promotion("standard"):
        check_rule(rule, expected)


@pytest.mark.parametrize(
    "rule",
    [
        whole_tree_rules.DistanceOverGradients(),
        pytest.param(whole_tree_rules.Prodigy(), marks=pytest.mark.slow),
    ],
)
def test_norms_of_the_whole_tree_do_not_see_how_it_is_cut(rule, compiled):
    PROMISES[CUT](aj.transform(rule))
    assert any("run" in name for name in compiled), compiled


def test_extra_arguments_are_made_up():
    rules = whole_tree_rules.AdaHessian(), whole_tree_rules.StochasticPolyak()
    made = Trial(aj.transform(*rules)).extra_args({"a": jnp.zeros(3), "none": None})
    assert list(made) == ["hessian_diagonal", "value"]
    assert made["hessian_diagonal"]["a"].tolist() == [0.5, 1.0, 1.5]
    assert made["hessian_diagonal"]["none"] is None
    assert made["value"] > 0
    gradients = {"a": jnp.zeros(3)}
    trial = Trial(aj.chain(aj.transform(whole_tree_rules.Cautious())))
    assert trial.extra_args(gradients) == {"grad": gradients}


# Each promise, and the ways to break it


def rule(update=lambda self, grad, slots, param, ctx: (grad, {}), **attributes):
    """A rule, which hands the gradient on if nothing else is said."""
    return dataclass(frozen=True)(type("Unnamed", (aj.Rule,), {"update": update, **attributes}))


def transformation(*arguments, **attributes):
    """The transformation of such a rule."""
    return aj.transform(rule(*arguments, **attributes)())


class AroundState(NamedTuple):
    inner_state: Any


@dataclass(frozen=True)
class Around(Wrapper):
    """A wrapper that changes the state of what is in it."""

    inner: Any
    changed: Any = lambda state, params: state
    made: Any = lambda inner, params: inner.init(params)

    wraps, state_type = {"inner": "inner_state"}, AroundState

    def init(self, params):
        return AroundState(self.made(self.inner, params))

    def step(self, updates, state, params=None, **extra_args):
        updates, new = self.inner.update(updates, state.inner_state, params, **extra_args)
        return updates, AroundState(self.changed(new, params))


def around(inner, **functions):
    return Transformation.of(Around(inner, **functions))


with_start = transformation(slots={"start": aj.Slot("param", constant=True)})

with_total = transformation(
    advance=lambda self, scalars, measured, ctx: {"total": scalars["total"] + 1},
    scalars={"total": 0.0},
)


def halved(state, params):
    return jax.tree.map(lambda x: x / 2 if x.dtype == jnp.float32 else x, state)


def in_dtype_of(state, params):
    dtype = jax.tree.leaves(params)[0].dtype
    return jax.tree.map(lambda x: x.astype(dtype), state)


def refuses_vectors(message):
    def init(params):
        if any(x.ndim < 2 for x in jax.tree.leaves(params)):
            raise ValueError(message)
        return ()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


@dataclass(frozen=True)
class Compares(aj.Rule):
    limit: aj.Hyper = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.limit > 1:
            raise ValueError("too large")

    def update(self, grad, slots, param, ctx):
        return self.limit * grad, {}


@dataclass(frozen=True)
class RefusesTrees(Compares):
    def __post_init__(self):
        if isinstance(self.limit, dict):
            raise TypeError("limit is one number for all arrays")
        super().__post_init__()


@dataclass(frozen=True)
class Doubles(aj.Rule):
    rate: aj.Hyper = 0.5
    factor: Any = None

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "factor", 2 if isinstance(self.rate, float) else 1)

    def update(self, grad, slots, param, ctx):
        return self.factor * self.rate * grad, {}


@dataclass(frozen=True)
class StartsElsewhere(aj.Rule):
    start: aj.Hyper = 0.5
    slots = {"mean": aj.Slot("first")}

    @property
    def first(self):
        return self.start if isinstance(self.start, float) else 0.0

    def update(self, grad, slots, param, ctx):
        return self.start * grad, {"mean": slots["mean"]}


def by_rate(self, grad, slots, param, ctx):
    return grad * ctx.scalars["rate"], {}


def mean_of_each(self, grad, slots, param, ctx):
    return {"size": jnp.mean(jnp.abs(grad))}


def norm_of_each(self, grad, slots, param, ctx):
    return {"norm": maths.norm(grad)}


def mean_of_means(self, scalars, measured, ctx):
    return {"rate": measured["size"].mean()}


def sum_of_norms(self, scalars, measured, ctx):
    return {"rate": measured["norm"].sum()}


def of_each_array(self, grad, slots, param, ctx):
    """Not element-wise: what it does to an array is meant to depend on all of it."""
    return grad * ctx.scalars["rate"] / (1 + jnp.max(jnp.abs(grad))), {}


@jax.custom_batching.custom_vmap
def doubled_under_vmap(x):
    return x


@doubled_under_vmap.def_vmap
def _(size, is_batched, x):
    return 2 * x, is_batched[0]


def evaluating(evaluate, **attributes):
    """A transformation that keeps the last gradient, and evaluates with a function of it."""
    return transformation(
        lambda self, grad, slots, param, ctx: (grad, {"last": grad}),
        evaluate=lambda self, param, slots, ctx: evaluate(param, slots["last"]),
        slots={"last": aj.Slot()},
        **attributes,
    )


WAYS = {
    MATRICES: [
        (refuses_vectors("it is refused"), "refused without a name: it is refused"),
        (refuses_vectors("only matrices"), "refused without a name: only matrices.*matrix = True"),
        (refuses_vectors("nested is refused"), "refused without a name: nested is refused"),
    ],
    CONSTANT: [
        (
            around(with_start, changed=halved),
            "constant slot 'start' of Unnamed.* after 1 updates, and was .*around the rule",
        ),
        (
            around(with_start, made=lambda inner, params: halved(inner.init(params), params)),
            r"'start' of Unnamed.*, and starts as .*where the parameters are",
        ),
    ],
    SCALARS: [
        (
            around(
                with_total,
                changed=in_dtype_of,
                made=lambda inner, params: in_dtype_of(inner.init(params), params),
            ),
            "At first, the scalar 'total' of Unnamed.* is float16 with float16 parameters",
        ),
        (around(with_total, changed=in_dtype_of), "After an update, the scalar 'total' of Unnamed"),
    ],
    TREES: [
        (aj.transform(Compares()), "limit of Compares.* refused without its name: TypeError"),
        (
            aj.transform(Doubles()),
            r"equal numbers for Doubles\.rate, the second update: .*look into __post_init__",
        ),
    ],
    CUT: [
        (
            transformation(by_rate, measure=mean_of_each, advance=mean_of_means),
            "of the same numbers in three arrays: at .*mean of means",
        ),
        (
            transformation(by_rate, measure=norm_of_each, advance=sum_of_norms),
            "of the same numbers in three arrays: at .*norms by aj.maths.norm",
        ),
    ],
    EVALUATES_AT_FIRST: [
        (
            evaluating(lambda param, last: 2 * param, counts_steps=False),
            "Before the first update, Unnamed.* in place of the parameters.*counts_steps = True",
        ),
    ],
    EVALUATES: [
        (evaluating(lambda param, last: jnp.log(param)), "that are random, .* at .*'matrix'"),
        (evaluating(lambda param, last: param + last**2), r"that are huge, .*infinite or NaN"),
        (evaluating(lambda param, last: doubled_under_vmap(param)), "under jit and vmap, Unnamed"),
    ],
}


def test_ways_to_break_every_promise():
    assert list(WAYS) == list(WHOLE_TREE_PROMISES)


@pytest.mark.parametrize(
    ("promise", "place"),
    [(promise, place) for promise, ways in WAYS.items() for place in range(len(ways))],
)
def test_each_promise_alone_is_broken(promise, place):
    tx, message = WAYS[promise][place]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        PROMISES[promise](tx)


@pytest.mark.parametrize(
    ("promise", "tx"),
    [
        # What is refused by name, and what no promise is for.
        (TREES, aj.transform(RefusesTrees())),
        (TREES, aj.transform(StartsElsewhere())),
        (TREES, aj.transform(whole_tree_rules.DistanceOverGradients())),
        (CUT, transformation(of_each_array, measure=norm_of_each, advance=sum_of_norms)),
        (
            CUT,
            transformation(by_rate, measure=norm_of_each, advance=sum_of_norms, layerwise=True),
        ),
        (CONSTANT, with_start),
        (CONSTANT, around(with_start)),
        (SCALARS, around(with_total)),
    ],
)
def test_each_promise_alone_holds(promise, tx):
    PROMISES[promise](tx)


def test_a_promise_of_these_that_is_expected_to_break():
    only = {TREES: PROMISES[TREES]}
    tx, why = aj.transform(Compares()), {TREES: "its limit is compared"}
    with pytest.raises(BrokenPromise, match=f"breaks a promise: {TREES}. limit of Compares"):
        check_promises(tx, only, tx)
    check_promises(tx, only, tx, expected=why)
    with pytest.raises(BrokenPromise, match=f"{TREES}' is expected to break, but holds"):
        check_promises(tx, only, aj.transform(RefusesTrees()), expected=why)

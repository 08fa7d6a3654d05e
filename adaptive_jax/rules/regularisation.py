"""Regularisation for any optimizer, in one vocabulary: penalties, proximal steps, bounds, and FTRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._core.arguments import one_of
from .._core.hyper import Hyper, NonNegative, Positive, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from .._core.views import OUTPUTS
from ..maths import abs_squared, bounded, clamped, norm, ratio, saturated, square_root
from ._factory import Paper, composed, preconditioner

PROXIMAL = Paper("Parikh & Boyd 2014", "https://doi.org/10.1561/2400000003", "section 6.5")


@dataclass(frozen=True)
class Penalty(Rule):
    """The derivative of what is added to the loss: first in a chain.

        g + λ₁ sign(θ) + λ₂θ + λ_g θ/‖θ_group‖

    Of zeros it is 0. It moves no parameter to 0 exactly: `Proximal` does.

    l1: λ₁ >= 0, of the sum λ₁Σ|θ|; 0 or None for none.
    l2: λ₂ >= 0, of half the sum of squares (λ₂/2)Σθ²; None for none.
    group_l1: λ_g >= 0, of the sum of the norms of the groups, λ_gΣ‖θ_group‖; None for none.
    groups: "columns" for a group of what makes one output, "rows" for one of what one input is for, or
      "array" for one of all numbers of an array. In a vector, a column or a row is one number.
    axes: which axes are rows, the inputs, and which columns, the outputs: an `aj.MatrixAxes`, or a dict
      from patterns of paths to these; None for those of Flax and Keras, whose last axis is that of
      the outputs. For PyTorch's kernels it is `aj.MatrixAxes(rows=..., columns=0)`.
    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = None

    l1: NonNegative
    l2: NonNegative = None
    group_l1: NonNegative = None
    groups: str = "columns"
    axes: Any = None
    mask: Mask = None
    takes_vectors = True
    usual_axes = OUTPUTS
    needs_params = True
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        one_of("groups", self.groups, ("columns", "rows", "array"))
        if self.axes is not None and not self.matrix:
            raise ValueError(
                f"axes={self.axes!r} in {type(self).__name__} say what rows and columns are, and it has no "
                'such groups: give group_l1 and groups="columns" or "rows".'
            )

    @property
    def matrix(self):
        return self.group_l1 is not None and self.groups != "array"

    def group_norms(self, x):
        """‖θ_group‖ for each number, or in a shape that is broadcast to it."""
        if self.groups == "array":
            return norm(x, tuple(range(x.ndim)))
        return lax.abs(x) if x.ndim < 2 else norm(x, -2 if self.groups == "columns" else -1)

    def update(self, grad, slots, param: Any, ctx):
        if not ctx.selected:
            return grad, {}
        if self.l1 is not None:
            grad = grad + self.l1 * jnp.sign(param)
        if self.l2 is not None:
            grad = grad + self.l2 * param
        if self.group_l1 is not None:
            grad = grad + self.group_l1 * ratio(param, self.group_norms(param)).astype(grad.dtype)
        return grad, {}


@dataclass(frozen=True)
class Proximal(Penalty):
    """A step, and then the step that makes the penalty smaller, exactly: last in a chain.

        z = θ + u
        z ← sign(z)·max(|z| - ηλ₁, 0)
        z ← z·max(1 - ηλ_g/‖z_group‖, 0)
        θ ← z/(1 + ηλ₂)

    u is the step, learning rate included, and η that rate. A number within ηλ₁ of 0 becomes 0, exactly, as
    does a group within ηλ_g. After gradient descent it is the proximal gradient method; after
    an adaptive optimizer it is decoupled: η is the same for all numbers, as in AdamW.

    learning_rate: η >= 0; None for that of the optimizer before it in an `aj.chain`, or in its row.
    """

    paper = PROXIMAL

    learning_rate: NonNegative = None
    learning_rate_field = (
        None  # It is that of the optimizer before: the step has been multiplied by it.
    )
    owns_rate = True

    @property
    def needs_learning_rate(self):
        return self.learning_rate is None

    def update(self, grad, slots, param: Any, ctx):
        if not ctx.selected:
            return grad, {}
        rate = ctx.learning_rate if self.learning_rate is None else self.learning_rate
        new = param + grad
        if self.l1 is not None:
            new = jnp.sign(new) * jnp.maximum(lax.abs(new) - rate * self.l1, 0)
        if self.group_l1 is not None:
            size = self.group_norms(new)
            new = new * ratio(jnp.maximum(size - rate * self.group_l1, 0), size).astype(new.dtype)
        if self.l2 is not None:
            new = new / (1 + rate * self.l2)
        return step_to(new, param) + 0 * grad, {}


@dataclass(frozen=True)
class Box(Rule):
    """A step that ends at a bound where it would have gone beyond: last in a chain.

        θ ← min(max(θ + u, l), h)

    low: the least value l of a parameter; None for none.
    high: the largest value h of a parameter; None for none.
    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = None

    low: Hyper = None
    high: Hyper = None
    mask: Mask = None
    needs_params = True
    takes_complex = False
    owns_rate = True

    def update(self, grad, slots, param: Any, ctx):
        if not ctx.selected:
            return grad, {}
        moved = param + grad
        if self.low is not None:
            grad = jnp.where(moved < self.low, self.low - param, grad)
        if self.high is not None:
            grad = jnp.where(moved > self.high, self.high - param, grad)
        return grad, {}


def step_to(new, param):
    """The step from a parameter to its new value: exactly -θ to 0, and θ - θ is 0 in every precision."""
    return jnp.where(new == 0, -param, new - param)


@dataclass(frozen=True)
class Ftrl(Rule):
    """Follow the regularised leader: each coordinate's best answer to all gradients so far.

        z ← z + ηg - (√(n + g²) - √n)θ,   n ← n + g²,   q = β + √n + ηλ₂
        θ ← 0 where |z| <= ηλ₁,   -(z - ηλ₁ sign(z))/q elsewhere

    z is η times the paper's, so that η may be 0 and follow a schedule. At first it is that of which θ is
    the answer: 0 for θ = 0, where the paper starts. With no penalty it is AdaGrad.

    learning_rate: η >= 0, the paper's α.
    beta: β >= 0: 1 in the paper. The first step of a coordinate is ηg/(β + |g|).
    l1: λ₁ >= 0, of Σ|θ|: numbers become 0 exactly.
    l2: λ₂ >= 0, of half the sum of squares; in the paper's algorithm the regulariser of each step.
    initial_accumulator_value: the first value of n, >= 0: 0 in the paper, 0.1 in Keras.
    weight_decay: the decoupled weight decay λ, >= 0; None for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = Paper("McMahan et al. 2013", "https://doi.org/10.1145/2487575.2488200", "algorithm 1")
    takes_any_rate = True

    learning_rate: NonNegative
    beta: NonNegative = 1.0
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    weight_decay: NonNegative = None
    mask: Mask = None
    slots = {"z": Slot(), "n": Slot(initial="initial_accumulator_value", nonnegative=True)}
    needs_params = True
    takes_complex = False
    owns_rate = True

    def update(self, grad, slots, param: Any, ctx):
        rate, old = self.learning_rate, slots["n"]
        square = abs_squared(clamped(grad))
        n = ctx.store("n", saturated(old) + square)
        root, old_root = square_root(n), square_root(old)
        least, l2 = rate * self.l1, rate * self.l2
        first = -(self.beta + old_root + l2) * param - least * jnp.sign(param)
        z = jnp.where(ctx.step == 1, first, slots["z"])
        # √n - √n' as g²/(√n + √n'), in which nothing cancels.
        z = z + rate * bounded(grad) - square / (root + old_root) * param
        curvature = self.beta + root + l2
        if self.weight_decay is not None and ctx.selected:
            z = z + rate * self.weight_decay * curvature * param
        z = ctx.store("z", z)
        new = -jnp.sign(z) * jnp.maximum(lax.abs(z) - least, 0) / curvature
        return step_to(new, param) + 0 * grad, {"z": z, "n": n}


@dataclass(frozen=True)
class FtrlFromZero(Rule):
    """The same as Keras has it: z is that of gradients, starts at 0, and n may have any power.

        θ ← (1-ηλ)θ,   z ← z + g + 2sθ - ((n + g²)ᵖ - nᵖ)/η·θ,   n ← n + g²
        θ ← (min(max(z, -λ₁), λ₁) - z)/((β + nᵖ)/η + 2λ₂)

    learning_rate: η > 0.
    power: p >= 0.
    beta: β >= 0.
    l1: λ₁ >= 0.
    l2: λ₂ >= 0.
    l2_shrinkage: s >= 0, of an L2 penalty that n knows nothing of.
    initial_accumulator_value: the first value of n, >= 0.
    weight_decay: the decoupled weight decay λ, >= 0; None for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = Ftrl.paper

    learning_rate: Positive
    power: NonNegative = 0.5
    beta: NonNegative = 0.0
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    l2_shrinkage: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.1
    weight_decay: NonNegative = None
    mask: Mask = None
    slots = {"n": Slot(initial="initial_accumulator_value", nonnegative=True), "z": Slot()}
    needs_params = True
    takes_complex = False
    owns_rate = True

    @property
    def learning_rate_power(self):
        """-p, as Keras counts it."""
        return -self.power

    def update(self, grad, slots, param: Any, ctx):
        rate, old, decayed = self.learning_rate, slots["n"], param
        if self.weight_decay is not None and ctx.selected:
            decayed = (1 - rate * self.weight_decay) * param
        n = ctx.store("n", saturated(old) + abs_squared(clamped(grad)))
        pushed = bounded(grad) + 2 * self.l2_shrinkage * decayed
        pulled = (n**self.power - old**self.power) / rate * decayed
        z = ctx.store("z", slots["z"] + pushed - pulled)
        curvature = (self.beta + n**self.power) / rate + 2 * self.l2
        new = (jnp.clip(z, -self.l1, self.l1) - z) / curvature
        return step_to(new, param), {"n": n, "z": z}


@preconditioner(Penalty)
def add_penalty(
    l1: Any,
    l2: Any = None,
    group_l1: Any = None,
    *,
    groups: str = "columns",
    axes: Any = None,
    mask: Any = None,
) -> Transformation:
    """Adds the derivative of L1, L2 and group penalties to the gradients: first in a chain.

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.add_penalty(0.0, l2=1e-4), aj.sgd(0.1))
      chain(add_penalty(l1=0.0, l2=0.0001), sgd(learning_rate=0.1))
    """
    ...


@preconditioner(Proximal)
def proximal(
    l1: Any,
    l2: Any = None,
    group_l1: Any = None,
    *,
    groups: str = "columns",
    axes: Any = None,
    mask: Any = None,
    learning_rate: Any = None,
) -> Transformation:
    """L1, L2 and group penalties as a step of their own, to exact zeros: last in a chain.

    The penalties are those of `add_penalty`: with gradient descent both find the same minimum, this one
    with its zeros. l1 alone is the lasso, with l2 the elastic net, with group_l1 the (sparse) group lasso.

    In an `aj.chain` it knows the learning rate of the optimizer before it. Elsewhere, as in `optax.chain`
    or after another library's optimizer, give it here too; otherwise η is 1. After a velocity, which sums
    gradients, a step is as long as many: the minimum is that of (1-γ)λ, or of λ with `dampening=γ`.

    A parameter is 0 exactly wherever an update can hold -θ: in every dtype that gradients and parameters
    share, and for narrower parameters; not where gradients are float16 or bfloat16 and parameters are
    not.

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.chain(aj.sgd(0.1), aj.proximal(2.0)), jnp.array([1.0, 0.1])
      >>> print(params + tx.update(jnp.ones(2), tx.init(params), params)[0])
      [0.7 0. ]
    """
    ...


@preconditioner(Box)
def keep_params_in_box(low: Any = None, high: Any = None, *, mask: Any = None) -> Transformation:
    """Holds each parameter between two bounds: last in a chain.

    A bound of 0 holds exactly; another one up to the rounding of θ + (h - θ).

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.sgd(0.1), aj.keep_params_in_box(-1.0, 1.0))
      chain(sgd(learning_rate=0.1), keep_params_in_box(low=-1.0, high=1.0))
    """
    ...


@composed(Box)
def keep_params_nonnegative(*, mask: Any = None) -> Transformation:
    """Holds each parameter at 0 or above: last in a chain.

        θ ← max(θ + u, 0)

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, params = aj.chain(aj.sgd(0.1), aj.keep_params_nonnegative()), jnp.array([1.0, 0.1])
      >>> print(params + tx.update(jnp.full(2, 2.0), tx.init(params), params)[0])
      [0.8 0. ]
    """
    return build(keep_params_nonnegative, Box(low=0.0, mask=mask))


@composed(Ftrl)
def ftrl(
    learning_rate: Any,
    beta: Any = 1.0,
    l1: Any = 0.0,
    l2: Any = 0.0,
    initial_accumulator_value: Any = 0.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """FTRL-Proximal: AdaGrad's rates, and exact zeros with l1, for sparse linear models.

    Keras takes twice its own l2, starts with n = 0.1 and, whatever the parameters are at first, with z = 0:
    its first step moves all of them close to 0.

    weight_decay: the decoupled weight decay λ, >= 0: it stays in z, or the next step would undo it.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.ftrl(0.1, l1=1e-3)  # doctest: +ELLIPSIS
      ftrl(learning_rate=0.1, beta=1.0, l1=0.001, l2=0.0, ...)
    """
    rule = Ftrl(
        learning_rate, beta, l1, l2, initial_accumulator_value, none_if_zero(weight_decay), mask
    )
    return build(ftrl, rule, storage=storage)

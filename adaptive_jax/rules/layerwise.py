"""Steps that are measured against the norm of the array that they change: LARS, LAMB and their pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import NonNegative, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from .._core.views import OUTPUTS
from ..maths import norm, quotient, ratio, root_mean_square, scaled
from ._descent import decays_by
from ._factory import Paper, composed, preconditioner
from .adam import Adam
from .momentum import Trace
from .scaling import LearningRate

LARS = Paper("You, Gitman & Ginsburg 2017", "https://arxiv.org/abs/1708.03888")
LAMB = Paper("You et al. 2020", "https://arxiv.org/abs/1904.00962", "algorithm 2")


@dataclass(frozen=True)
class ScaleByBlockRms(Rule):
    """A step in the units of the array that it changes.

        d·max(ε₂, RMS(θ)),   RMS(θ) = ‖θ‖/√n

    min_scale: ε₂ >= 0, the least size that parameters count as.
    """

    paper = Paper("Shazeer & Stern 2018", "https://arxiv.org/abs/1804.04235", "section 8")

    min_scale: NonNegative = 1e-3
    needs_params = True

    def update(self, grad, slots, param: Any, ctx):
        return scaled(grad, jnp.maximum(root_mean_square(param), self.min_scale)), {}


@dataclass(frozen=True)
class TrustRatio(Rule):
    """A step whose norm is that of the array that it changes.

        d·c·φ(‖θ‖)/(‖d‖ + ε),   φ(x) = min(max(x, l), h),   ‖·‖ of the one array

    Where a norm is 0, d stays as it is.

    min_norm: the least norm l >= 0 that the parameters, and d, count as.
    trust_coefficient: c >= 0.
    eps: ε >= 0, added to ‖d‖.
    max_norm: the largest norm h that the parameters count as: 10 in the authors' code of LAMB; None for no
      limit.
    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = LAMB

    min_norm: NonNegative = 0.0
    trust_coefficient: NonNegative = 1.0
    eps: NonNegative = 0.0
    max_norm: NonNegative = None
    mask: Mask = None
    needs_params = True
    state_is_masked = True

    def update(self, grad, slots, param: Any, ctx):
        if not ctx.selected:
            return grad, {}
        of_param = jnp.clip(norm(param), self.min_norm, self.max_norm)
        of_grad = jnp.maximum(norm(grad), self.min_norm)
        return trusted(grad, self.trust_coefficient * of_param, of_grad, of_grad + self.eps), {}


@dataclass(frozen=True)
class LarsTrustRatio(Rule):
    """LARS' step, whose norm is a share of that of the array that it changes.

        d·q‖θ‖/(‖g‖ + λ‖θ‖ + ε),   d = g + λθ

    It comes after the weight decay. Where ‖θ‖ or the denominator is 0, d stays as it is.

    trust_coefficient: q >= 0, the share.
    eps: ε >= 0, added to the denominator.
    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    weight_decay: the λ that is in d, >= 0; None for none.
    decayed: which arrays that λ is for.
    sum_of_norms: False for ‖g + λθ‖ in the denominator, as in optax.
    """

    paper = LARS

    trust_coefficient: NonNegative = 0.001
    eps: NonNegative = 0.0
    mask: Mask = None
    weight_decay: NonNegative = None
    decayed: Mask = None
    sum_of_norms: bool = True
    needs_params = True
    state_is_masked = True

    def update(self, grad, slots, param: Any, ctx):
        adapts, decays = ctx.selected
        if not adapts:
            return grad, {}
        of_param, of_grad = norm(param), norm(grad)
        if self.sum_of_norms and self.weight_decay is not None and decays:
            # What g + λθ cancels is no digit of this sum.
            of_decay = self.weight_decay * of_param
            of_grad = norm(grad - self.weight_decay * param) + of_decay
        return trusted(grad, self.trust_coefficient * of_param, of_grad, of_grad + self.eps), {}


@dataclass(frozen=True)
class TrustedStep(Rule):
    """LAMB's step in Keras: as long as η times the array that it changes, which decays first.

        θ ← (1-ηλ)θ,   θ ← θ - η·‖θ‖/‖d‖·d,   ‖·‖ of the one array

    Where a norm is 0, d stays as it is.

    learning_rate: η >= 0.
    weight_decay: λ >= 0; None for none. It is no part of d.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = LAMB

    learning_rate: NonNegative
    weight_decay: NonNegative = None
    mask: Mask = None
    needs_params = True

    def update(self, grad, slots, param: Any, ctx):
        size, of_grad, rate = norm(param), norm(grad), self.learning_rate
        if self.weight_decay is None or not ctx.selected:
            return scaled(trusted(grad, size, of_grad, of_grad), -rate), {}
        decay = rate * self.weight_decay
        step = trusted(grad, jnp.abs(1 - decay) * size, of_grad, of_grad)
        return scaled(step, -rate) - scaled(param, decay), {}


def trusted(grad, size, of_grad, denominator):
    """grad/denominator · size; grad itself where size or its own norm is 0."""
    is_known = (size > 0) & (of_grad >= jnp.finfo(of_grad.dtype).tiny)
    unit = quotient(grad, jnp.where(is_known, denominator, 1))
    return jnp.where(is_known, scaled(unit, size), grad)


@dataclass(frozen=True)
class Centralize(Rule):
    """The gradient of a matrix without its mean over the inputs, for each output.

        g - mean over rows of g

    Vectors stay as they are.

    axes: which axes are inputs, the rows, and which outputs, the columns: an `aj.MatrixAxes`, or a dict
      from patterns of paths to these; None for those of Flax and Keras, whose last axis is that of the
      outputs. For PyTorch's kernels it is `aj.MatrixAxes(rows=..., columns=0)`.
    """

    paper = Paper("Yong et al. 2020", "https://arxiv.org/abs/2004.01461")

    axes: Any = None
    matrix = True
    takes_vectors = True
    takes_complex = False
    usual_axes = OUTPUTS

    def update(self, grad, slots, param: Any, ctx):
        if grad.ndim < 2:
            return grad, {}
        return grad - jnp.sum(grad / grad.shape[-2], -2, keepdims=True), {}


@dataclass(frozen=True)
class Hyperball(Rule):
    """Each matrix keeps its norm, and each step is a share of it: last in a chain.

        W ← r·N(W + ηr·N(u)),   N(x) = x/‖x‖,   r = ‖W₀‖

    u is the step of the optimizer before it, and η that one's learning rate: how far a matrix turns.
    A matrix that starts at 0 moves by u, freely, and so do vectors.

    radius: the norm r > 0 of every matrix; None for that which each has at first.
    per: "matrix" for a norm of each matrix; "output" for one of each of its columns.
    scale_steps: False for r·N(W + u): steps keep the size that they have.
    axes: which axes are those of the matrices, rows for inputs and columns for outputs: an `aj.MatrixAxes`,
      or a dict from patterns of paths to these; None for those of Flax and Keras, all but the last
      and the last. Of scanned layers, (layers, in, out), it is `aj.MatrixAxes()`.
    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    learning_rate: η >= 0; None for that of the optimizer before it in an `aj.chain`, or in its row.
    """

    paper = Paper("Wen et al. 2026", "https://arxiv.org/abs/2606.16899")

    radius: NonNegative = None
    per: str = "matrix"
    scale_steps: bool = True
    axes: Any = None
    mask: Mask = None
    learning_rate: NonNegative = None
    learning_rate_field = None  # It is that of the optimizer before.
    matrix = True
    takes_vectors = True
    takes_complex = False
    usual_axes = OUTPUTS
    needs_params = True
    owns_rate = True

    def __post_init__(self):
        super().__post_init__()
        one_of("per", self.per, ("matrix", "output"))

    @property
    def needs_learning_rate(self):
        return self.scale_steps and self.learning_rate is None

    def norms(self, x):
        return norm(x, (-2, -1) if self.per == "matrix" else -2)

    @property
    def slots(self):
        def shape(of):
            return None if len(of) < 2 else (*of[:-2], 1, 1 if self.per == "matrix" else of[-1])

        return {} if self.radius is not None else {"radius": Slot(self.norms, True, shape=shape)}

    def update(self, grad, slots, param: Any, ctx):
        if grad.ndim < 2 or not ctx.selected:
            return grad, slots
        radius = slots["radius"] if self.radius is None else self.radius
        step = grad
        if self.scale_steps:
            rate = ctx.learning_rate if self.learning_rate is None else self.learning_rate
            step = rate * radius * ratio(step, self.norms(step))
        moved = param + step
        turned = radius * ratio(moved, self.norms(moved)) - param
        return jnp.where(radius > 0, turned, grad), slots


@preconditioner(ScaleByBlockRms)
def scale_by_param_block_rms(min_scale: Any = 1e-3) -> Transformation:
    """Multiplies the updates of each array by the root mean square of its parameters."""
    ...


@preconditioner(TrustRatio)
def scale_by_trust_ratio(
    min_norm: Any = 0.0,
    trust_coefficient: Any = 1.0,
    eps: Any = 0.0,
    *,
    max_norm: Any = None,
    mask: Any = None,
) -> Transformation:
    """Gives the updates of each array the norm of its parameters.

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.
    """
    ...


@preconditioner(Centralize)
def centralize(*, axes: Any = None) -> Transformation:
    """Takes the mean over the inputs out of the gradient of each matrix.

    That of optax takes it over all axes but the first, which are the outputs of a kernel of Flax.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, kernel = aj.centralize(), jnp.array([[1.0, 10.0], [3.0, 20.0]])  # (inputs, outputs)
      >>> print(tx.update(kernel, tx.init(kernel))[0])
      [[-1. -5.]
       [ 1.  5.]]
    """
    ...


@preconditioner(Hyperball)
def hyperball(
    radius: Any = None,
    *,
    per: str = "matrix",
    scale_steps: bool = True,
    axes: Any = None,
    mask: Any = None,
    learning_rate: Any = None,
    storage: Any = None,
) -> Transformation:
    """Holds the norm of each matrix, in the place of weight decay: last in a chain.

    The paper has it for the hidden matrices alone: mask the embeddings and the head out.

    In an `aj.chain` it knows the learning rate of the optimizer before it. Elsewhere, as in `optax.chain`
    or after another library's optimizer, give it here too; otherwise η is 1.

    mask: which arrays: a tree of bools, a prefix of one, or a function of the parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, kernel = aj.chain(aj.adam(0.1), aj.hyperball()), jnp.array([[3.0], [4.0]])
      >>> updates, _ = tx.update(jnp.array([[1.0], [0.0]]), tx.init(kernel), kernel)
      >>> print(f"{jnp.linalg.norm(kernel + updates):.3f} {jnp.linalg.norm(updates):.2f}")
      5.000 0.42
    """
    ...


@composed(Adam, paper=LAMB, eps=1e-6)
def lamb(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    max_norm: Any = None,
    storage: Any = None,
) -> Transformation:
    """LAMB: Adam for large batches, each array's step as long as η times the array.

        u = μ̂/(√ν̂ + ε) + λθ
        θ ← θ - ηφ(‖θ‖)·u/‖u‖

    Where ‖θ‖ or ‖u‖ is 0, it is θ - ηu. The weight decay is inside the norm, so that alone it
    shrinks an array by η of it whatever λ is; PyTorch Image Models and Keras have other ways.

    max_norm: the largest norm that the parameters count as in φ: 10 in the authors' code; None for no
      limit.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.lamb(0.01, weight_decay=0.1)
      lamb(learning_rate=0.01, b1=0.9, b2=0.999, eps=1e-06, eps_root=0.0, weight_decay=0.1)
    """
    decay = decays_by(lamb, weight_decay, mask, True)
    direction, scale = Adam(b1, b2, eps, eps_root), TrustRatio(max_norm=max_norm)
    return build(lamb, direction, *decay, scale, LearningRate(learning_rate), storage=storage)


@composed(Trace, paper=LARS)
def lars(
    learning_rate: Any,
    weight_decay: Any = 0.0,
    mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
    *,
    sum_of_norms: bool = True,
    storage: Any = None,
) -> Transformation:
    """LARS: momentum for large batches, each array's step as long as a share of the array.

        v ← γv + η·q‖θ‖/(‖g‖ + λ‖θ‖ + ε)·(g + λθ)
        θ ← θ - v                                       or θ - (γv + η·…) with nesterov=True

    Where ‖θ‖ or the denominator is 0, the ratio is 1.

    trust_coefficient: q >= 0, the share.
    eps: ε >= 0, added to the denominator.
    trust_ratio_mask: which arrays have the ratio; all others have 1. A mask like `mask`.
    momentum: the decay γ of the velocity of steps, in [0, 1].
    sum_of_norms: False for ‖g + λθ‖ in the denominator, as in optax.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.lars(0.1, weight_decay=1e-4)  # doctest: +ELLIPSIS
      lars(learning_rate=0.1, weight_decay=0.0001, ..., trust_coefficient=0.001, ..., momentum=0.9)
    """
    decay = decays_by(lars, weight_decay, mask, True)
    scale = LarsTrustRatio(
        trust_coefficient=trust_coefficient, eps=eps, mask=trust_ratio_mask,
        weight_decay=none_if_zero(weight_decay), decayed=mask, sum_of_norms=sum_of_norms,
    )  # fmt: skip
    rules = (*decay, scale, LearningRate(learning_rate), Trace(momentum, nesterov))
    return build(lars, *rules, storage=storage)


lars.fields = {  # type: ignore[attr-defined]
    "trust_ratio_mask": "LarsTrustRatio.mask", "momentum": "Trace.decay"
}  # fmt: skip

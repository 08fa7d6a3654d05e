"""Clipping: of each element, of each unit, of each array, of all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core.hyper import Limit, NonNegative
from .._core.rule import Rule
from .._core.transformation import Transformation
from .._core.views import OUTPUTS
from ..maths import scaled
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class Clip(Rule):
    """Each element is held between -c and c. What is not finite stays visible, as NaN.

        min(max(g, -c), c)

    max_delta: the largest size c that an element may have, >= 0; infinite for no limit.
    """

    paper = None

    max_delta: Limit
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        return jnp.clip(grad, -self.max_delta, self.max_delta) + 0 * grad, {}


@dataclass(frozen=True)
class ClipByNorm(Rule):
    """Each array is scaled so that its own norm is at most c.

        g·min(1, c/‖g‖),   ‖g‖ of the one array

    max_norm: the largest norm c that the updates may have, >= 0; infinite for no limit.
    """

    paper = None

    max_norm: Limit
    layerwise = True

    def measure(self, grad, slots, param, ctx):
        return {"norm": maths.norm(grad)}

    def advance(self, scalars, measured, ctx):
        return {"norm": maths.norm(measured["norm"])}

    def update(self, grad, slots, param, ctx):
        return clipped(grad, ctx.scalars["norm"], self.max_norm), {}


@dataclass(frozen=True)
class ClipByGlobalNorm(ClipByNorm):
    """All arrays are scaled by one factor so that their common norm is at most c.

        g·min(1, c/‖g‖),   ‖g‖ over all arrays

    max_norm: the largest norm c that the updates may have, >= 0; infinite for no limit.
    """

    paper = Paper("Pascanu, Mikolov & Bengio 2013", "https://arxiv.org/abs/1211.5063")

    layerwise = False


@dataclass(frozen=True)
class ClipPerLayer(Rule):
    """Each array is scaled by a factor of its own so that the common norm of all is at most c.

        g·min(1, cₖ/‖g‖),   cₖ = c/√K, or c·√(nₖ/n)

    K is the number of arrays, nₖ that of the elements of one, and n that of all.

    max_norm: the largest norm c that all updates together may have, >= 0; infinite for no limit.
    uniform: False for c·√(nₖ/n): an array may have the more, the larger it is.
    """

    paper = Paper("McMahan et al. 2018", "https://arxiv.org/abs/1710.06963", "section 2")

    max_norm: Limit
    uniform: bool = True

    def measure(self, grad, slots, param, ctx):
        return {"size": 1.0 if self.uniform else float(grad.size)}

    def advance(self, scalars, measured, ctx):
        return {"size": measured["size"].sum()}

    def update(self, grad, slots, param, ctx):
        share = (1 if self.uniform else max(1, grad.size)) / ctx.scalars["size"]
        return clipped(grad, maths.norm(grad), self.max_norm * jnp.sqrt(share)), {}


@dataclass(frozen=True)
class ClipByBlockRms(Rule):
    """Each array is scaled so that its own root mean square is at most d.

        u/max(1, RMS(u)/d),   RMS(u) = ‖u‖/√n

    threshold: the largest root mean square d that the updates may have, >= 0; infinite for no limit.
    """

    paper = Paper("Shazeer & Stern 2018", "https://arxiv.org/abs/1804.04235", "section 6")

    threshold: Limit

    def update(self, grad, slots, param, ctx):
        return clipped(grad, maths.root_mean_square(grad), self.threshold), {}


@dataclass(frozen=True)
class AdaptiveClip(Rule):
    """The gradient of each unit is scaled so that its norm is at most a share of that of the unit.

        g·min(1, c·max(‖θ‖, ε)/‖g‖),   ‖·‖ of the one unit

    A unit is what makes one output, a column of a matrix, over all inputs; a vector is one unit.

    clipping: the largest share c >= 0: 0.01 in the paper.
    eps: ε >= 0, the least norm that a unit counts as, so that one of zeros can move.
    axis: the axis or axes of the inputs, of every array, of which one that has not these is one unit; None
      for what axes say.
    axes: which axes are inputs, the rows, and which outputs, the columns: an `aj.MatrixAxes`, or a dict
      from patterns of paths to these; None for those of Flax and Keras, whose last axis is that of the
      outputs. For PyTorch's kernels it is `aj.MatrixAxes(rows=..., columns=0)`.
    """

    paper = Paper("Brock et al. 2021", "https://arxiv.org/abs/2102.06171", "section 4.1")

    clipping: NonNegative
    eps: NonNegative = 1e-3
    axis: int | tuple[int, ...] | None = None
    axes: Any = None
    takes_vectors = True
    takes_complex = False
    usual_axes = OUTPUTS
    needs_params = True

    def __post_init__(self):
        super().__post_init__()
        if self.axis is not None and self.axes is not None:
            raise ValueError(
                f"axis={self.axis!r} and axes={self.axes!r} are two ways to say what a unit is: give one."
            )

    @property
    def matrix(self):
        return self.axis is None

    def norms(self, x):
        inputs = -2 if self.axis is None else self.axis
        has = all(-x.ndim <= at < x.ndim for at in np.atleast_1d(inputs))
        return maths.norm(x, inputs if has else tuple(range(x.ndim)))

    def update(self, grad, slots, param, ctx):
        limit = self.clipping * jnp.maximum(self.norms(param), self.eps)
        largest = jnp.maximum(self.norms(grad), limit)
        return grad * (limit / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)), {}


def clipped(grad, norm, max_norm):
    """grad · min(1, max_norm/norm); 0 where both norms are 0, grad itself for an infinite max_norm.

    In two factors, the first a power of two, so that neither is subnormal for a large norm.
    """
    is_limit = max_norm < jnp.inf
    max_norm = jnp.where(is_limit, max_norm, jnp.ones_like(max_norm))
    first = jnp.where((norm > 2.0**64) & is_limit, 2.0**-64, 1.0).astype(norm.dtype)
    largest = jnp.maximum(jnp.maximum(norm, max_norm) * first, jnp.finfo(norm.dtype).tiny)
    second = jnp.where(is_limit, max_norm / largest, jnp.ones_like(largest))
    return scaled(scaled(grad, first), second)


@preconditioner(Clip)
def clip(max_delta: Any) -> Transformation:
    """Holds each element between -c and c. It takes no complex arrays."""
    ...


@preconditioner(ClipByNorm)
def clip_by_norm(max_norm: Any) -> Transformation:
    """Scales each array so that its own norm is at most c."""
    ...


@preconditioner(ClipByGlobalNorm)
def clip_by_global_norm(max_norm: Any) -> Transformation:
    """Scales all arrays by one factor so that their common norm is at most c.

    The norm is summed in float32 at least, and does not overflow. To see in the state which steps are
    clipped, measure before it.

    Example:
      >>> import adaptive_jax as aj
      >>> norm = aj.monitor({"norm": aj.global_norm})
      >>> aj.chain(norm, aj.clip_by_global_norm(1.0), aj.adam(1e-3))  # doctest: +ELLIPSIS
      chain(monitor(norm), clip_by_global_norm(max_norm=1.0), adam(learning_rate=0.001, ...))
    """
    ...


@preconditioner(ClipPerLayer)
def clip_per_layer(max_norm: Any, uniform: bool = True) -> Transformation:
    """Scales each array by a factor of its own so that the common norm of all is at most c.

    For a largest norm of each layer by itself it is `clip_by_norm`, which takes a tree of them.
    """
    ...


@preconditioner(ClipByBlockRms)
def clip_by_block_rms(threshold: Any) -> Transformation:
    """Scales each array so that its own root mean square is at most d."""
    ...


@preconditioner(AdaptiveClip)
def adaptive_grad_clip(
    clipping: Any, eps: Any = 1e-3, axis: Any = None, *, axes: Any = None
) -> Transformation:
    """Scales the gradient of each unit to at most a share of the unit's own norm.

    The paper leaves the head out: `aj.masked(aj.adaptive_grad_clip(0.01), mask)`. Where optax takes an
    array of three axes for the heads of an attention, and one of two or four for a kernel of Flax, here
    the last axis is the outputs' in all of them: `axes` says of attention what else there is.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, kernel = aj.adaptive_grad_clip(0.1), jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> print(tx.update(jnp.ones((2, 2)), tx.init(kernel), kernel)[0].round(3))
      [[0.354 0.035]
       [0.354 0.035]]
    """
    ...

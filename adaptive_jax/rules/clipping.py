"""Clipping: of each element, of each array, of all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .. import maths
from .._core.hyper import Limit
from .._core.rule import Rule
from .._core.transformation import Transformation
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

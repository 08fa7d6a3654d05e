"""Clipping."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .. import maths
from .._core.hyper import Limit
from .._core.rule import Rule
from ..maths import scaled


@dataclass(frozen=True)
class Clip(Rule):
    """Each element is held between -c and c. What is not finite stays visible, as NaN."""

    max_delta: Limit
    takes_complex = False

    def update(self, grad, slots, param, ctx):
        return jnp.clip(grad, -self.max_delta, self.max_delta) + 0 * grad, {}


@dataclass(frozen=True)
class ClipByNorm(Rule):
    """g · min(1, c/‖g‖), where ‖g‖ is the norm of the one array."""

    max_norm: Limit

    def update(self, grad, slots, param, ctx):
        return clipped(grad, maths.global_norm([grad]), self.max_norm), {}


@dataclass(frozen=True)
class ClipByGlobalNorm(Rule):
    """g · min(1, c/‖g‖), where ‖g‖ is the norm of all arrays together.

    Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063.
    """

    max_norm: Limit

    def statistic(self, grads):
        return maths.global_norm(grads)

    def update(self, grad, slots, param, ctx):
        return clipped(grad, ctx.statistic.astype(self.max_norm.dtype), self.max_norm), {}


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

"""Clipping."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .. import maths
from .._rule import NonNegative, Rule


@dataclass(frozen=True)
class ClipByGlobalNorm(Rule):
    """g · min(1, c/‖g‖), where ‖g‖ is the norm of all arrays together.

    Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063.
    """

    max_norm: NonNegative

    def statistic(self, grads):
        return maths.global_norm(grads)

    def update(self, grad, slots, param, ctx):
        norm = ctx.statistic.astype(self.max_norm.dtype)
        largest = jnp.maximum(norm, self.max_norm)
        return grad * (self.max_norm / jnp.maximum(largest, jnp.finfo(norm.dtype).tiny)), {}

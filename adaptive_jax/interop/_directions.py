"""Directions that PyTorch and Keras have alike."""

from __future__ import annotations

from typing import Any

from .._core.hyper import none_if_zero
from .._core.rule import Rule
from ..rules.adam import Adam
from ..rules.adamax import AMSGrad
from ..rules.clipping import ClipByBlockRms
from ..rules.factored import FactoredRms
from ..rules.momentum import Trace
from ._port import is_absent


def velocity(momentum: Any, nesterov: bool = False, dampening: Any = None) -> list[Rule]:
    """A velocity; none where its momentum has no effect."""
    if is_absent(momentum):
        return []
    dampening = none_if_zero(dampening)
    return [Trace(momentum, nesterov, dampening, dampen_first=dampening is None)]


def moments(betas: Any, eps: Any, amsgrad: bool, eps_hat: bool = False) -> Rule:
    """Adam's direction, or AMSGrad's as both libraries have it."""
    b1, b2 = betas
    if amsgrad:
        return AMSGrad(b1, b2, eps, maximum_of="raw", eps_hat=eps_hat)
    return Adam(b1, b2, eps, eps_hat=eps_hat)


def factored(
    kind: type[FactoredRms], exponent: Any, eps: Any, threshold: Any, name: str
) -> list[Rule]:
    """Adafactor's clipped direction, of the last two axes of every array that has two or more.

    exponent: that of t in 1 - β₂, <= 0. name: what it is called there.
    """
    if callable(exponent):
        raise TypeError(f"{name} is a schedule: it is an exponent of t, and must be a number.")
    rule = kind(decay_rate=-exponent, min_dim_size_to_factor=0, eps=eps, factored_axes="last")
    return [rule, ClipByBlockRms(threshold)]

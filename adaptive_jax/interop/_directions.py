"""Directions that PyTorch and Keras have alike."""

from __future__ import annotations

from typing import Any

from .._core.hyper import none_if_zero
from .._core.rule import Rule
from ..rules.adam import Adam
from ..rules.adamax import AMSGrad
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

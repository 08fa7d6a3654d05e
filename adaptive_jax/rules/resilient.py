"""Resilient propagation: a step size for each element, which signs alone move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp

from .._core.arguments import is_number
from .._core.hyper import Fraction, Interval, NonNegative
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ._descent import decays_by
from ._factory import Paper, composed, preconditioner
from .scaling import Maximize
from .sign import sign

Growth = Annotated[Any, Interval(1.0)]
"""A factor by which something does not shrink."""


@dataclass(frozen=True)
class Rprop(Rule):
    """A step size for each element, longer where the gradient keeps its sign, shorter where it turns.

        s = sign(g)·sign(u₋₁),   Δ ← Δη₊ where s > 0,   Δ ← Δη₋ where s < 0,   both in [Δ_min, Δ_max]
        u = sign(g)Δ, and 0 where s < 0

    u₋₁ is the last u, so that after a turn the next step has no sign to compare with: iRprop⁻. For
    gradients of all data: those of batches have signs of their own.

    learning_rate: Δ at first, >= 0.
    eta_minus: η₋ in [0, 1].
    eta_plus: η₊ >= 1.
    min_step_size: Δ_min >= 0.
    max_step_size: Δ_max >= Δ_min.
    clip_first: True to hold Δ in [Δ_min, Δ_max] from the first step on, as PyTorch does, and not from
      where it first changes.
    keep_count: True to count the steps although nothing needs their number.
    """

    paper = (
        Paper("Riedmiller & Braun 1993", "https://doi.org/10.1109/ICNN.1993.298623"),
        Paper("Igel & Hüsken 2003", "https://doi.org/10.1016/S0925-2312(01)00700-7"),
    )
    takes_any_rate = True

    learning_rate: NonNegative
    eta_minus: Fraction = 0.5
    eta_plus: Growth = 1.2
    min_step_size: NonNegative = 1e-6
    max_step_size: NonNegative = 50.0
    clip_first: bool = False
    keep_count: bool = False
    slots = {"step_sizes": Slot("learning_rate", nonnegative=True), "prev_updates": Slot()}
    takes_complex = False
    learning_rate_field = None  # It is where the step sizes start from.
    state_type_name = "ScaleByRpropState"

    def __post_init__(self):
        super().__post_init__()
        least, most = self.min_step_size, self.max_step_size
        if is_number(least) and is_number(most) and most < least:
            raise ValueError(
                f"max_step_size={most} is out of range in Rprop: it must be at least min_step_size={least}."
            )

    @property
    def counts_steps(self):
        return self.keep_count

    def update(self, grad, slots, param, ctx):
        agreement = jnp.sign(grad) * jnp.sign(slots["prev_updates"])
        size = slots["step_sizes"] * jnp.where(agreement > 0, self.eta_plus, self.eta_minus)
        size = jnp.clip(size, self.min_step_size, self.max_step_size)
        same = slots["step_sizes"]
        if self.clip_first:
            same = jnp.clip(same, self.min_step_size, self.max_step_size)
        size = ctx.store("step_sizes", jnp.where(agreement == 0, same, size))
        update = sign(grad) * jnp.where(agreement < 0, 0, size)
        return update, {"step_sizes": size, "prev_updates": update}


@composed(Rprop)
def rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Rprop: each element has a step size of its own, which signs of gradients alone move.

    The learning rate is the first step size, and that of weight decay. optax's is one step late: its first
    update is 0.
    """
    rule = Rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    decay = decays_by(rprop, weight_decay, mask, learning_rate=learning_rate)
    return build(rprop, rule, Maximize(), *decay, storage=storage)


@preconditioner(Rprop)
def scale_by_rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
    *,
    storage: Any = None,
) -> Transformation:
    """Rprop's steps for a chain, which are to be subtracted. See `rprop`."""
    ...

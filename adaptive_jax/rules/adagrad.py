"""AdaGrad."""

from __future__ import annotations

from dataclasses import dataclass

from .._core.hyper import NonNegative
from .._core.rule import Rule, Slot
from ..maths import abs_squared, bounded, clamped, denominator, quotient, saturated, square_root


@dataclass(frozen=True)
class AdaGrad(Rule):
    """G ← G + g²; d = g/√(G + ε), or g/(√G + ε).

    Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html: the second form.
    """

    initial_accumulator_value: NonNegative = 0.1
    eps: NonNegative = 1e-7
    eps_in_sqrt: bool = True
    slots = {"sum_of_squares": Slot(initial="initial_accumulator_value", nonnegative=True)}
    counts_steps = False
    state_type_name = "ScaleByRssState"

    def update(self, grad, slots, param, ctx):
        total = saturated(slots["sum_of_squares"]) + abs_squared(clamped(grad))
        total = ctx.store("sum_of_squares", total)
        root = square_root(total, self.eps) if self.eps_in_sqrt else denominator(total, self.eps)
        return quotient(bounded(grad), root), {"sum_of_squares": total}

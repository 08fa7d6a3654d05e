"""Steps that shrink with all gradients so far: AdaGrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._core.hyper import NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import abs_squared, bounded, clamped, denominator, quotient, saturated, square_root
from ._descent import optimizer
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class AdaGrad(Rule):
    """Each coordinate's gradient over the root of the sum of its squares.

        G ← G + g²,   d = g/√(G + ε)

    initial_accumulator_value: the first value of the sum of squares, >= 0; 0 in the paper.
    eps: ε >= 0, against division by zero.
    eps_in_sqrt: False for d = g/(√G + ε): the paper's form.
    """

    paper = Paper("Duchi, Hazan & Singer 2011", "https://jmlr.org/papers/v12/duchi11a.html")
    takes_any_rate = True

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


@optimizer(AdaGrad)
def adagrad(
    learning_rate: Any,
    initial_accumulator_value: Any = 0.1,
    eps: Any = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaGrad: each coordinate's step shrinks with the sum of its squared gradients.

    Some published texts print θ ← θ - η·s/√(s + ε), without the gradient, or multiply the gradient
    by √s. Those are misprints: they do not minimise.
    """
    ...


@preconditioner(AdaGrad)
def scale_by_rss(
    initial_accumulator_value: Any = 0.1,
    eps: Any = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    storage: Any = None,
) -> Transformation:
    """AdaGrad's direction for a chain. See `adagrad`."""
    ...

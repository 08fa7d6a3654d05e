"""Gradient descent without a learning rate: the distance that it has come, over its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import NonNegative, Positive
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import largest_squared, norm, norm_in_one_pass, ratio, root_of_squares, scaled
from ._descent import decays_by
from ._factory import Paper, composed
from .scaling import LearningRate

STARTS = ("heuristic", "distance", "learning_rate")
"""What the first step is made of."""


@dataclass(frozen=True)
class DoG(Rule):
    """Distance over gradients.

        r ← max(r, ‖θ-θ₀‖),   G ← G + ‖g‖²,   d = r/√(G + ε)·g

    The norms are of all arrays. It needs an average of the parameters for its results:
    `aj.polynomial_average`.

    first: > 0, what the first step is made of: the first r is first·(1 + ‖θ₀‖). 1e-6, and 1e-4 with batch
      normalisation.
    start: "distance" for r = first at first; "learning_rate" for d = first·g in the first step.
    eps: ε >= 0, against division by zero.
    layerwise: whether each array has a step size of its own, of its own norms.
    """

    paper = Paper("Ivgi, Hinder & Carmon 2023", "https://arxiv.org/abs/2302.12022")
    takes_any_rate = True

    first: Positive = 1e-6
    start: str = "heuristic"
    eps: NonNegative = 1e-8
    layerwise: bool = False
    slots = {
        "first_params": Slot("param", constant=True),
        "first_norm": Slot(norm, nonnegative=True, shape=lambda shape: ()),
    }
    scalars = {"distance": 0.0, "norm": 0.0}
    needs_params = True

    def __post_init__(self):
        super().__post_init__()
        one_of("start", self.start, STARTS)

    def measure(self, grad, slots, param, ctx):
        moved = norm_in_one_pass(param - slots["first_params"])
        return {"grad": norm_in_one_pass(grad), "moved": moved, "first": slots["first_norm"]}

    def advance(self, scalars, measured, ctx):
        grad, moved = norm(measured["grad"]), norm(measured["moved"])
        first = {
            "heuristic": self.first * (1 + norm(measured["first"])),
            "distance": self.first,
            "learning_rate": 0.0,
        }[self.start]
        distance = jnp.maximum(scalars["distance"], jnp.maximum(moved, first))
        total = root_of_squares(scalars["norm"], grad)
        rate = ratio(distance, root_of_squares(total, jnp.sqrt(self.eps)))
        if self.start == "learning_rate":
            rate = jnp.where(ctx.step == 1, self.first, rate)
        return {"distance": distance, "norm": total, "rate": rate}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, ctx.scalars["rate"]), {"first_norm": slots["first_norm"]}


@dataclass(frozen=True)
class DoWG(Rule):
    """Distance over weighted gradients: those of where it has come further count for more.

        r² ← max(r², ‖θ-θ₀‖²),   V ← V + r²‖g‖²,   d = r²/(√V + ε)·g

    init_estim_sq_dist: the first r², > 0; None for ε.
    eps: ε > 0, against division by zero.
    """

    paper = Paper("Khaled, Mishchenko & Jin 2023", "https://arxiv.org/abs/2305.16284")
    takes_any_rate = True

    init_estim_sq_dist: Positive = None
    eps: Positive = 1e-4
    slots = {"first_params": Slot("param", constant=True)}
    scalars = {"squared_distance": "first", "norm": 0.0}
    needs_params = True
    counts_steps = False

    @property
    def first(self):
        return self.eps if self.init_estim_sq_dist is None else self.init_estim_sq_dist

    def measure(self, grad, slots, param, ctx):
        moved = norm_in_one_pass(param - slots["first_params"])
        return {"grad": norm_in_one_pass(grad), "moved": moved}

    def advance(self, scalars, measured, ctx):
        largest = largest_squared(self.eps.dtype)
        grad, moved = (jnp.minimum(norm(measured[name]), largest) for name in ("grad", "moved"))
        squared = jnp.maximum(scalars["squared_distance"], moved**2)
        total = root_of_squares(scalars["norm"], jnp.sqrt(squared) * grad)
        return {"squared_distance": squared, "norm": total, "rate": squared / (total + self.eps)}

    def update(self, grad, slots, param, ctx):
        return scaled(grad, ctx.scalars["rate"]), {}


def _descent(factory, rule, learning_rate, weight_decay, mask, **options):
    """The rule's step, with weight decay as an L2 penalty: of gradients, as the rule sees the distance."""
    decay = decays_by(factory, weight_decay, mask)
    return build(factory, *decay, rule, LearningRate(learning_rate), **options)


@composed(DoG)
def dog(
    learning_rate: Any = 1.0,
    init_step: Any = ("heuristic", 1e-6),
    eps: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Gradient descent without a learning rate, by distance over gradients.

        r ← max(r, ‖θ-θ₀‖),   G ← G + ‖g + λθ‖²,   θ ← θ - ηr/√(G + ε)·(g + λθ)

    Evaluate with an average, aj.chain(aj.dog(), aj.polynomial_average()), as the authors do. Weight decay
    is an L2 penalty, as theirs. Other than `optax.contrib.dog`: the distance and the sum are in float32 at
    least, so that bfloat16 parameters learn, and no square overflows.

    init_step: ("heuristic", a) for a first distance r of a·(1 + ‖θ₀‖), ("distance", r), or
      ("learning_rate", η₀) for the first step size; a number above 0 in each.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.dog()
      dog(learning_rate=1.0, init_step=('heuristic', 1e-06), eps=1e-08)
    """
    return _descent(
        dog, _started(DoG, init_step, eps), learning_rate, weight_decay, mask, storage=storage
    )


@composed(DoG)
def l_dog(
    learning_rate: Any = 1.0,
    init_step: Any = ("heuristic", 1e-6),
    eps: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """`dog` with a step size for each array, of its own norms: L-DoG, for large models.

        r ← max(r, ‖θ-θ₀‖),   G ← G + ‖g + λθ‖²,   θ ← θ - ηr/√(G + ε)·(g + λθ),   of each array

    init_step: ("heuristic", a) for a first distance r of a·(1 + ‖θ₀‖), ("distance", r), or
      ("learning_rate", η₀) for the first step size; a number above 0 in each.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.l_dog()
      l_dog(learning_rate=1.0, init_step=('heuristic', 1e-06), eps=1e-08)
    """
    rule = _started(DoG, init_step, eps, layerwise=True)
    return _descent(l_dog, rule, learning_rate, weight_decay, mask, storage=storage)


@composed(DoG)
def scale_by_dog(init_step: Any, eps: Any = 1e-8) -> Transformation:
    """DoG's direction for a chain. See `dog`.

    init_step: ("heuristic", a) for a first distance r of a·(1 + ‖θ₀‖), ("distance", r), or
      ("learning_rate", η₀) for the first step size; a number above 0 in each.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_dog(("heuristic", 1e-6))
      scale_by_dog(init_step=('heuristic', 1e-06), eps=1e-08)
    """
    return build(scale_by_dog, _started(DoG, init_step, eps))


@composed(DoWG)
def dowg(
    learning_rate: Any = 1.0,
    init_estim_sq_dist: Any = None,
    eps: Any = 1e-4,
    weight_decay: Any = None,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Gradient descent without a learning rate, by distance over weighted gradients.

        r² ← max(r², ‖θ-θ₀‖²),   V ← V + r²‖g + λθ‖²,   θ ← θ - ηr²/(√V + ε)·(g + λθ)

    Weight decay is an L2 penalty. Other than `optax.contrib.dowg`: the distance and the sum are in float32
    at least, so that bfloat16 parameters learn, and no square overflows.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.dowg()
      dowg(learning_rate=1.0, eps=0.0001)
    """
    return _descent(
        dowg, DoWG(init_estim_sq_dist, eps), learning_rate, weight_decay, mask, storage=storage
    )


@composed(DoWG)
def scale_by_dowg(init_estim_sq_dist: Any = None, eps: Any = 1e-4) -> Transformation:
    """DoWG's direction for a chain. See `dowg`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_dowg()
      scale_by_dowg(eps=0.0001)
    """
    return build(scale_by_dowg, DoWG(init_estim_sq_dist, eps))


def _started(rule: Any, init_step: Any, eps: Any, **options: Any) -> Any:
    """The rule with a first step in optax's words."""
    if not (isinstance(init_step, tuple) and len(init_step) == 2 and isinstance(init_step[0], str)):
        raise TypeError(
            f"init_step={init_step!r:.80} must be a pair of a word, one of {', '.join(map(repr, STARTS))}, "
            'and a number: ("heuristic", 1e-6).'
        )
    start, first = init_step
    one_of("init_step[0]", start, STARTS)
    return rule(first, start, eps, **options)


for _made in (dog, l_dog, scale_by_dog):
    _made.fields = {"init_step": ("start", "first")}  # type: ignore[attr-defined]

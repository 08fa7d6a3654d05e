"""Hyperparameters that descend the loss while it is trained, by its derivative with respect to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Decay, Fraction, NonNegative, Positive, none_if_zero
from .._core.mask import Mask
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    clamped,
    denominator,
    ema,
    inner,
    norm,
    norm_in_one_pass,
    quotient,
    ratio,
    scaled,
    second_moment,
)
from ._descent import decays_by
from ._factory import Paper, composed

PAPER = Paper("Baydin et al. 2018", "https://arxiv.org/abs/1703.04782")


@dataclass(frozen=True)
class Hypergradient(Rule):
    """A learning rate that descends the loss: it grows where the gradient agrees with the last direction d.

        η ← η(1 + κ⟨g, d⟩/(‖g‖‖d‖)),   then with the new d:   θ ← θ - ηd

    Of the loss after a step, -⟨g, d⟩ is the derivative by the η of that step. What it returns is the step
    itself. Inner product and norms are of all arrays; g is the gradient, as it came to the chain.

    learning_rate: the first η, > 0.
    hypergradient_rate: κ >= 0, by how much of itself η changes in a step at most.
    multiplicative: False for η ← max(η + κ⟨g, d⟩, 0): the paper's algorithms, where κ is as small as η over
      the squared norm of a gradient, and the authors take 1e-6.
    """

    paper = PAPER
    takes_any_rate = True

    learning_rate: Positive
    hypergradient_rate: NonNegative = 0.02
    multiplicative: bool = True
    slots = {"direction": Slot()}
    scalars = {"rate": "learning_rate"}
    needs_gradient = True
    takes_complex = False
    owns_rate = True
    counts_steps = False
    learning_rate_field = None
    learning_rate_scalar = "rate"

    def measure(self, grad, slots, param, ctx):
        found = {"inner": inner(ctx.gradient, slots["direction"])}
        if not self.multiplicative:
            return found
        sizes = norm_in_one_pass(ctx.gradient), norm_in_one_pass(slots["direction"])
        return {**found, "grad": sizes[0], "direction": sizes[1]}

    def advance(self, scalars, measured, ctx):
        rate, along = scalars["rate"], measured["inner"].sum()
        if not self.multiplicative:
            return {"rate": clamped(jnp.maximum(rate + self.hypergradient_rate * along, 0))}
        agrees = cosine(along, measured["grad"], measured["direction"])
        return {"rate": clamped(rate * jnp.maximum(1 + self.hypergradient_rate * agrees, 0))}

    def update(self, grad, slots, param, ctx):
        direction = ctx.store("direction", grad)
        return scaled(grad, -ctx.scalars["rate"]), {"direction": direction}


@dataclass(frozen=True)
class AdamHD(Rule):
    """Adam whose learning rate and β₁ descend the loss, by its derivatives with respect to them.

        η ← η(1 + κ⟨g, d⟩/(‖g‖‖d‖)),   1-β₁ ← (1-β₁)(1 - κ_β⟨g, d′⟩/(‖g‖‖d′‖)),   Π ← β₁Π
        d′ ← (μ - (1-Π_old)g)/(1-Π)²/(√ν̂ + ε),   μ ← β₁μ + (1-β₁)g,   d ← μ/(1-Π)/(√ν̂ + ε)
        θ ← θ - η(d + λθ)

    ν̂ is Adam's, and d′ the derivative of d by the β₁ of the same step. In the first line d and d′ are those
    of the last step. Inner products and norms are of all arrays.

    learning_rate: the first η, > 0.
    b1: the first β₁, in [0, 1]; it stays between 0 and 0.9999.
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    hypergradient_rate: κ >= 0, by how much of itself η changes in a step at most; 0 for a constant η.
    b1_rate: κ_β >= 0, the same for 1 - β₁; None for a constant β₁, as in the paper.
    weight_decay: the decoupled weight decay λ >= 0; None or 0 for none.
    mask: which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.
    """

    paper = PAPER
    takes_any_rate = True

    learning_rate: Positive = 1e-3
    b1: Fraction = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    hypergradient_rate: NonNegative = 0.02
    b1_rate: NonNegative = None
    weight_decay: NonNegative = None
    mask: Mask = None
    scalars = {"rate": "learning_rate", "b1": "b1", "b1_product": 1.0}
    takes_complex = False
    owns_rate = True
    learning_rate_field = None
    learning_rate_scalar = "rate"
    per_array = ("eps", "weight_decay")

    @property
    def slots(self):
        kept = {"mu": Slot(), "nu": Slot(nonnegative=True), "direction": Slot()}
        return kept if self.b1_rate is None else {**kept, "by_b1": Slot()}

    @property
    def needs_params(self):
        return self.weight_decay is not None

    def measure(self, grad, slots, param, ctx):
        found = {"grad": norm_in_one_pass(grad)}
        for name in ("direction", "by_b1") if self.b1_rate is not None else ("direction",):
            found |= {
                name: norm_in_one_pass(slots[name]),
                f"along_{name}": inner(grad, slots[name]),
            }
        return found

    def advance(self, scalars, measured, ctx):
        agrees = cosine(measured["along_direction"].sum(), measured["grad"], measured["direction"])
        rate = clamped(scalars["rate"] * jnp.maximum(1 + self.hypergradient_rate * agrees, 0))
        b1 = scalars["b1"]
        if self.b1_rate is not None:
            agrees = cosine(measured["along_by_b1"].sum(), measured["grad"], measured["by_b1"])
            b1 = 1 - jnp.clip((1 - b1) * (1 - self.b1_rate * agrees), 1e-4, 1)
        before = scalars["b1_product"]
        return {"rate": rate, "b1": b1, "b1_product": b1 * before, "before": before}

    def update(self, grad, slots, param, ctx):
        rate, b1, old = ctx.scalars["rate"], ctx.scalars["b1"], slots["mu"]
        mu = ctx.store("mu", ema(bounded(grad), old, b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        weight = 1 - ctx.scalars["b1_product"]
        root = scaled(
            denominator(quotient(nu, bias_correction(self.b2, ctx.step)), self.eps), weight
        )
        direction = quotient(mu, root)
        new = {"mu": mu, "nu": nu, "direction": ctx.store("direction", direction)}
        if self.b1_rate is not None:
            change = old - scaled(bounded(grad), 1 - ctx.scalars["before"])
            # Of constant gradients it is 0, but for a rounding that has no direction.
            is_some = jnp.abs(change) > 64 * jnp.finfo(change.dtype).eps * jnp.abs(old)
            by_b1 = quotient(jnp.where(is_some, change, 0 * change), scaled(root, weight))
            new |= {"by_b1": ctx.store("by_b1", by_b1)}
        step = direction
        if self.weight_decay is not None and ctx.selected:
            step = step + self.weight_decay * param
        return scaled(step, -rate), new


def cosine(product, *sizes):
    """⟨x, y⟩/(‖x‖‖y‖), of the norms of each array; 0 where one is 0, and where it is not finite."""
    found = product
    for each in sizes:
        found = ratio(found, norm(each))
    return jnp.where(jnp.isfinite(found), jnp.clip(found, -1, 1), 0)


@composed(Hypergradient, learning_rate=1e-3)
def sgd_hd(
    learning_rate: Any = 1e-3,
    hypergradient_rate: Any = 0.02,
    multiplicative: bool = True,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Gradient descent whose learning rate descends the loss: SGD-HD.

        d = g + λθ,   η ← η(1 + κ⟨g, d_last⟩/(‖g‖‖d_last‖)),   θ ← θ - ηd

    It finds a rate from one that is far too small, and follows the loss where the best one moves. What it
    goes for is the loss of the next step: with noisy gradients, whose steps agree with nothing, it makes η
    smaller than the best of a whole run. It may step over the edge of what is stable for a while, before it
    comes back, and from a rate that diverges at once it does not. By default each step changes η by 2 % at
    most, whatever the size of the gradients: the paper's multiplicative form.
    `aj.scale_by_hypergradient` is it for a chain.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx, w = aj.sgd_hd(1e-4, 0.1), jnp.array([1.0, -2.0])
      >>> state = tx.init(w)
      >>> for _ in range(120):
      ...     updates, state = tx.update(w, state, w)
      ...     w = w + updates
      >>> print(f"{state.rate:.1f}")
      1.0
    """
    decay = decays_by(sgd_hd, weight_decay, mask)
    rule = Hypergradient(learning_rate, hypergradient_rate, multiplicative)
    return build(sgd_hd, *decay, rule, storage=storage)


@composed(Hypergradient, learning_rate=1e-3)
def scale_by_hypergradient(
    learning_rate: Any = 1e-3,
    hypergradient_rate: Any = 0.02,
    multiplicative: bool = True,
    *,
    storage: Any = None,
) -> Transformation:
    """A learning rate that descends the loss, last in a chain, in the place of `scale_by_learning_rate`.

    aj.chain(aj.scale_by_adam(), aj.scale_by_hypergradient(1e-3)) is Adam-HD, behind aj.trace(0.9,
    nesterov=True) it is SGDN-HD. See `sgd_hd`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_hypergradient(0.01)
      scale_by_hypergradient(learning_rate=0.01, hypergradient_rate=0.02)
    """
    rule = Hypergradient(learning_rate, hypergradient_rate, multiplicative)
    return build(scale_by_hypergradient, rule, storage=storage)


@composed(AdamHD)
def adam_hd(
    learning_rate: Any = 1e-3,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    hypergradient_rate: Any = 0.02,
    b1_rate: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adam whose learning rate descends the loss, by its derivative: Adam-HD; its β₁ too, with b1_rate.

    `sgd_hd` says what it is good for, and what not. β₁ is for the end of the search: while η is far too
    small, gradients agree, β₁ grows, and what has been averaged for long shoots over later.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adam_hd(b1_rate=0.01)
      adam_hd(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, hypergradient_rate=0.02, b1_rate=0.01)
    """
    rule = AdamHD(
        learning_rate, b1, b2, eps, hypergradient_rate, b1_rate, none_if_zero(weight_decay), mask
    )
    return build(adam_hd, rule, storage=storage)

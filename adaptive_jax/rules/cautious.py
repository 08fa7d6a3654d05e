"""Around any direction: what of it is kept, or which sign it gets, by the gradient at hand."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.rule import Rule
from .._core.transformation import Transformation
from ..maths import scaled
from ._factory import Paper, preconditioner

_LEAST_SHARE = 1e-3
"""The smallest share of an array that the authors' code divides by."""


@dataclass(frozen=True)
class Cautious(Rule):
    """A direction without what goes against the gradient, and as much longer as that was of it.

        φ = 1[u∘g >= 0],   d = u∘φ·n/(Σφ + 1)

    Of an array of n elements. u is what the rules before made of the gradient g: this one stands behind
    them, and before weight decay, which is not masked.

    normalization: "code" for d = u∘φ/max(Σφ/n, 1e-3), φ = 1[u∘g > 0]: as in the authors' AdamW, and
      timm's; "none" for d = u∘φ. The paper's adds 1 to the count, which halves an array of one element.
    layerwise: False to count Σφ and n over all arrays, the one vector of the paper. Its authors' code
      counts in each, as is done here.
    flip_sign: True behind the learning rate, where u has its sign: behind a whole optimizer.
    """

    paper = Paper("Liang et al. 2024", "https://arxiv.org/abs/2411.16085", "algorithm 2")

    normalization: str = "paper"
    layerwise: bool = True
    flip_sign: bool = False
    takes_complex = False
    needs_gradient = True

    def __post_init__(self):
        super().__post_init__()
        one_of("normalization", self.normalization, ("paper", "code", "none"))

    def agrees(self, direction, gradient):
        """Where both have one sign. By signs, of which no product underflows."""
        product = jnp.sign(direction) * jnp.sign(-gradient if self.flip_sign else gradient)
        agrees = product > 0 if self.normalization == "code" else product >= 0
        return agrees.astype(direction.dtype)

    def measure(self, grad, slots, param, ctx):
        return {"agreeing": self.agrees(grad, ctx.gradient).sum(), "size": float(grad.size)}

    def advance(self, scalars, measured, ctx):
        agreeing, size = measured["agreeing"].sum(), measured["size"].sum()
        if self.normalization == "none":
            return {"factor": jnp.ones_like(size)}
        if self.normalization == "paper":
            return {"factor": size / (agreeing + 1)}
        share = agreeing / jnp.maximum(size, 1)  # There may be no element.
        return {"factor": 1 / jnp.maximum(share, _LEAST_SHARE)}

    def update(self, grad, slots, param, ctx):
        # What is not finite stays visible.
        kept = grad * self.agrees(grad, ctx.gradient) + 0 * grad
        return scaled(kept, ctx.scalars["factor"]), {}


@dataclass(frozen=True)
class Grams(Rule):
    """The size of a direction, with the sign of the gradient.

        d = |u|∘sign(g)

    u is what the rules before made of the gradient g: this one stands behind them, and before weight decay.

    flip_sign: True for d = -|u|∘sign(g): behind the learning rate, behind a whole optimizer.
    """

    paper = Paper("Cao, Li & Song 2024", "https://arxiv.org/abs/2412.17107", "algorithm 1")

    flip_sign: bool = False
    takes_complex = False
    needs_gradient = True

    def update(self, grad, slots, param, ctx):
        sign = jnp.sign(-ctx.gradient if self.flip_sign else ctx.gradient)
        return jnp.abs(grad) * sign + 0 * grad, {}


@preconditioner(Cautious)
def cautious(
    normalization: str = "paper", layerwise: bool = True, flip_sign: bool = False
) -> Transformation:
    """Leaves out of a direction what goes against the gradient, for a chain. It takes no complex arrays.

    It looks at the gradient that came to the outermost `aj.chain`. In a chain of optax's, `update` gets it
    as `grad=gradients`, which `train_step` hands on.

    Example:
      >>> import adaptive_jax as aj
      >>> rate = aj.scale_by_learning_rate(1e-3)
      >>> adamw = aj.chain(aj.scale_by_adam(), aj.cautious(), aj.add_decayed_weights(0.1), rate)
      >>> lion = aj.chain(aj.lion(1e-4), aj.cautious("code", flip_sign=True))
    """
    ...


@preconditioner(Grams)
def grams(flip_sign: bool = False) -> Transformation:
    """Gives a direction the signs of the gradient, for a chain. It takes no complex arrays.

    It looks at the gradient that came to the outermost `aj.chain`. In a chain of optax's, `update` gets it
    as `grad=gradients`, which `train_step` hands on.

    Example:
      >>> import adaptive_jax as aj
      >>> rate = aj.scale_by_learning_rate(1e-3)
      >>> tx = aj.chain(aj.scale_by_adam(), aj.grams(), aj.add_decayed_weights(0.1), rate)
    """
    ...

"""Adam with the largest second moment, or the largest gradient, in place of an average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import one_of
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import (
    bias_correction,
    bounded,
    decayed,
    ema,
    least_denominator,
    saturated,
    second_moment,
)
from ._descent import optimizer
from ._factory import Paper, preconditioner
from .adam import ratio
from .scaling import DECOUPLED


@dataclass(frozen=True)
class AMSGrad(Rule):
    """Adam whose second moment never falls.

        ν_max ← max(ν_max, ν̂),   d = μ̂/(√(ν_max + ε_root) + ε)

    The paper corrects no bias.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    eps_root: ε_root >= 0, added inside the root; > 0 to differentiate through the update.
    bias_correction_mu: False for μ̂ = μ.
    bias_correction_nu: False for ν̂ = ν.
    maximum_of: "raw" for ν_max ← max(ν_max, ν): corrected afterwards by today's 1-β₂ᵗ, as PyTorch and
      Keras do; "corrected" for that of ν̂.
    eps_hat: whether ε is the ε̂ that Adam's paper adds before the bias correction. Only with "raw".
    """

    paper = Paper("Reddi, Kale & Kumar 2018", "https://arxiv.org/abs/1904.09237")

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 0.0
    bias_correction_mu: bool = True
    bias_correction_nu: bool = True
    maximum_of: str = "corrected"
    eps_hat: bool = False
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True), "nu_max": Slot(nonnegative=True)}
    state_type_name = "ScaleByAmsgradState"

    def __post_init__(self):
        super().__post_init__()
        one_of("maximum_of", self.maximum_of, ("corrected", "raw"))
        if self.eps_hat and self.maximum_of != "raw":
            raise ValueError(
                'eps_hat=True needs maximum_of="raw": ε̂ is added before the correction.'
            )

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        correction_1 = bias_correction(self.b1, ctx.step) if self.bias_correction_mu else 1
        correction_2 = bias_correction(self.b2, ctx.step) if self.bias_correction_nu else 1
        if self.maximum_of == "corrected":
            nu_max = ctx.store("nu_max", jnp.maximum(slots["nu_max"], saturated(nu / correction_2)))
            correction_2 = 1
        else:
            nu_max = ctx.store("nu_max", jnp.maximum(slots["nu_max"], nu))
        direction = ratio(self, mu, correction_1, nu_max, correction_2)
        return direction, {"mu": mu, "nu": nu, "nu_max": nu_max}


@dataclass(frozen=True)
class AdaMax(Rule):
    """Adam with the largest recent gradient in place of the root mean square.

        μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g| + ε),   d = μ/((1-β₁ᵗ)ν)

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the largest gradient, in [0, 1).
    eps: ε >= 0, against division by zero. The paper has none.
    eps_in_max: False for ν ← max(β₂ν, |g|), d = μ/((1-β₁ᵗ)(ν + ε)): as Keras has it.
    """

    paper = Paper("Kingma & Ba 2015", "https://arxiv.org/abs/1412.6980", "algorithm 2")

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_in_max: bool = True
    slots = {"mu": Slot(), "nu": Slot(nonnegative=True)}
    state_type_name = "ScaleByAdamState"

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(grad, slots["mu"], self.b1))
        size = jnp.abs(grad) + self.eps if self.eps_in_max else jnp.abs(grad)
        nu = ctx.store("nu", jnp.maximum(decayed(slots["nu"], self.b2), size))
        denominator = bias_correction(self.b1, ctx.step) * (
            nu if self.eps_in_max else nu + self.eps
        )
        direction = mu / jnp.maximum(denominator, least_denominator(nu.dtype))
        return direction, {"mu": mu, "nu": nu}


@optimizer(AMSGrad)
def amsgrad(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum_of: str = "corrected",
    eps_hat: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AMSGrad: Adam whose second moment never falls. PyTorch's is maximum_of="raw".

    The paper corrects no bias.
    """
    ...


@optimizer(AdaMax)
def adamax(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    eps_in_max: bool = True,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaMax: Adam with the largest recent gradient in place of the root mean square."""
    ...


@optimizer(AdaMax, paper=(AdaMax.paper, DECOUPLED))
def adamaxw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    eps_in_max: bool = True,
    storage: Any = None,
) -> Transformation:
    """AdaMaxW: AdaMax with decoupled weight decay."""
    ...


@preconditioner(AMSGrad)
def scale_by_amsgrad(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum_of: str = "corrected",
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """AMSGrad's direction for a chain. See `amsgrad`."""
    ...


@preconditioner(AdaMax)
def scale_by_adamax(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    eps_in_max: bool = True,
    storage: Any = None,
) -> Transformation:
    """AdaMax's direction for a chain. See `adamax`."""
    ...

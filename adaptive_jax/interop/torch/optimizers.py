"""`torch.optim`'s optimizers under their names."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..._core.arguments import one_of
from ..._core.hyper import none_if_zero
from ..._core.rule import Rule
from ...rules import rms, scaling
from ...rules.adagrad import AdaGrad
from ...rules.adam import NAdam, RAdam
from ...rules.adamax import AdaMax
from ...rules.averaging import AveragedDescent
from ...rules.factored import HeldFactoredRms, RelativeStep
from ...rules.orthogonal import MuonOfWeights
from ...rules.resilient import Rprop
from .._directions import factored, moments, velocity
from .._port import (
    COMMON,
    DECAY,
    LEARNING_RATE,
    LIMIT,
    NON_NEGATIVE,
    NON_POSITIVE,
    Argument,
    is_absent,
    port,
)

_IMPLEMENTATION = Argument("chooses an implementation in PyTorch; no effect here.")


_ARGUMENTS = {
    **COMMON,
    "lr": LEARNING_RATE,
    "dampening": Argument(
        "τ in [0, 1): gradients enter the velocity with weight 1 - τ, but for the first.",
        "dampening",
        DECAY,
    ),
    "weight_decay": Argument("λ >= 0; 0 for none.", "weight_decay", NON_NEGATIVE),
    "lr_decay": Argument(
        "δ >= 0, for the step size lr/(1 + δ(t-1)).", "learning_rate_decay", NON_NEGATIVE
    ),
    "eps": Argument("ε >= 0, against division by zero.", "eps", NON_NEGATIVE),
    "alpha": Argument("the decay rate of the moving averages, in [0, 1).", "decay", DECAY),
    "rho": Argument("the decay rate of both moving averages, in [0, 1).", "rho", DECAY),
    "etas": Argument(
        "η₋ and η₊, by which a step size is multiplied where the gradient turns, and where it does not.",
        ("eta_minus", "eta_plus"),
        NON_NEGATIVE,
    ),
    "step_sizes": Argument(
        "the least and the largest step size of an element, >= 0.",
        ("min_step_size", "max_step_size"),
        NON_NEGATIVE,
    ),
    "betas": Argument("the decay rates β₁ and β₂, each in [0, 1).", ("b1", "b2"), DECAY),
    "momentum_decay": Argument(
        "ψ >= 0, for the decay rate β₁(1 - ½·0.96^(ψt)) of the momentum.",
        "momentum_decay",
        NON_NEGATIVE,
    ),
    "decoupled_weight_decay": Argument(
        "whether weight decay is AdamW's, and no L2 penalty.", is_option=True
    ),
    "beta2_decay": Argument(
        "the exponent -c <= 0 of t in 1 - β̂ₜ = t^(-c).", "exponent", NON_POSITIVE
    ),
    "d": Argument(
        "the largest root mean square that a direction may have, >= 0.", "threshold", LIMIT
    ),
    "maximize": Argument("whether to climb.", is_option=True),
    "foreach": _IMPLEMENTATION,
    "fused": _IMPLEMENTATION,
    "capturable": _IMPLEMENTATION,
    "differentiable": _IMPLEMENTATION,
}


# Options that choose among PyTorch's implementations, and have no effect.
IMPLEMENTATIONS = {name for name, each in _ARGUMENTS.items() if each is _IMPLEMENTATION}


def _complete(
    direction: Sequence[Rule], given: Mapping[str, Any], decoupled: bool = False
) -> Sequence[Rule]:
    """-g where `maximize` is, an L2 penalty before the direction or decoupled decay after it."""
    rate, mask = given["lr"], given["mask"]
    decay = none_if_zero(given["weight_decay"])
    first: list[Rule] = [scaling.Maximize()] if given.get("maximize") else []
    last = scaling.LearningRate(
        rate, learning_rate_decay=none_if_zero(given.get("lr_decay")), keep_count=True
    )
    if decay is not None and (decoupled or given.get("decoupled_weight_decay")):
        last = scaling.LearningRate(rate, decay, mask, keep_count=True)
    elif decay is not None:
        first.append(scaling.WeightDecay(decay, mask))
    return [*first, *direction, last]


def _complete_steps(steps: Sequence[Rule], given: Mapping[str, Any]) -> Sequence[Rule]:
    """-g where `maximize` is, before rules whose last one makes the step."""
    return [scaling.Maximize(), *steps] if given["maximize"] else steps


_port = port("torch", _ARGUMENTS, _complete)


@_port
def sgd(
    lr: Any = 1e-3, momentum: Any = 0, dampening: Any = 0, weight_decay: Any = 0,
    nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
    differentiable: bool = False, fused: bool | None = None, mask: Any = None,
    storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.SGD`.

        g ← g + λθ,   v ← γv + (1-τ)g,   θ ← θ - ηv      Nesterov: θ - η(g + γv)

    The first velocity is g, whatever the dampening τ. https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.sgd(lr=0.1, momentum=0.9)
      torch.sgd(lr=0.1, momentum=0.9)
    """
    if nesterov and (is_absent(momentum) or not is_absent(dampening)):
        raise ValueError(
            f"nesterov=True needs a momentum and no dampening, got momentum={momentum!r} and "
            f"dampening={dampening!r}."
        )
    return velocity(momentum, nesterov, dampening)


@_port
def adagrad(
    lr: Any = 1e-2, lr_decay: Any = 0, weight_decay: Any = 0,
    initial_accumulator_value: Any = 0, eps: Any = 1e-10, foreach: bool | None = None, *,
    maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Adagrad`.

        g ← g + λθ,   G ← G + g²,   θ ← θ - η/(1 + δ(t-1)) · g/(√G + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adagrad(lr=0.1)
      torch.adagrad(lr=0.1, initial_accumulator_value=0.0, eps=1e-10)
    """
    return [AdaGrad(initial_accumulator_value, eps, eps_in_sqrt=False)]


@_port
def adadelta(
    lr: Any = 1.0, rho: Any = 0.9, eps: Any = 1e-6, weight_decay: Any = 0,
    foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False,
    differentiable: bool = False, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Adadelta`.

        g ← g + λθ,   E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²,   θ ← θ - ηd

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adadelta(rho=0.95)
      torch.adadelta(lr=1.0, rho=0.95, eps=1e-06)
    """
    return [rms.AdaDelta(rho, eps)]


@_port
def rmsprop(
    lr: Any = 1e-2, alpha: Any = 0.99, eps: Any = 1e-8, weight_decay: Any = 0,
    momentum: Any = 0, centered: bool = False, capturable: bool = False,
    foreach: bool | None = None, maximize: bool = False, differentiable: bool = False, *,
    mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.RMSprop`.

        g ← g + λθ,   ν ← αν + (1-α)g²,   d = g/(√ν + ε)      centered: √(ν - μ²), μ ← αμ + (1-α)g
        v ← γv + d,   θ ← θ - ηv

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.rmsprop(lr=0.1, momentum=0.9)
      torch.rmsprop(lr=0.1, alpha=0.99, eps=1e-08, momentum=0.9)
    """
    kind = rms.StdDev if centered else rms.Rms
    return [kind(alpha, eps, eps_in_sqrt=False), *velocity(momentum)]


@_port
def adam(
    lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0,
    amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
    capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    decoupled_weight_decay: bool = False, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Adam`.

        g ← g + λθ,   μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²
        θ ← θ - η·μ/(1-β₁ᵗ)/(√(ν/(1-β₂ᵗ)) + ε)      amsgrad: the largest ν so far for ν

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adam(amsgrad=True)
      torch.adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, amsgrad=True)
    """
    return [moments(betas, eps, amsgrad)]


@port("torch", _ARGUMENTS, functools.partial(_complete, decoupled=True))
def adamw(
    lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 1e-2,
    amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
    capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.AdamW`: `adam` with decoupled weight decay.

        θ ← θ - ηλθ - η·μ/(1-β₁ᵗ)/(√(ν/(1-β₂ᵗ)) + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adamw()
      torch.adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)
    """
    return [moments(betas, eps, amsgrad)]


@_port
def nadam(
    lr: Any = 2e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0,
    momentum_decay: Any = 4e-3, decoupled_weight_decay: bool = False, *,
    foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
    differentiable: bool = False, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.NAdam`.

        β₁(t) = β₁(1 - ½·0.96^(ψt)),   Π(t) = β₁(1)···β₁(t),   g ← g + λθ,   μ and ν as in `adam`
        θ ← θ - η·((1-β₁(t))/(1-Π(t))·g + β₁(t+1)/(1-Π(t+1))·μ)/(√(ν/(1-β₂ᵗ)) + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.nadam()
      torch.nadam(lr=0.002, betas=(0.9, 0.999), eps=1e-08, momentum_decay=0.004)
    """
    return [NAdam(*betas, eps=eps, momentum_decay=momentum_decay)]


@_port
def adamax(
    lr: Any = 2e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0,
    foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
    capturable: bool = False, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Adamax`.

        g ← g + λθ,   μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g| + ε),   θ ← θ - ημ/((1-β₁ᵗ)ν)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adamax()
      torch.adamax(lr=0.002, betas=(0.9, 0.999), eps=1e-08)
    """
    return [AdaMax(*betas, eps=eps)]


@_port
def radam(
    lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0,
    decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
    maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.RAdam`.

        g ← g + λθ,   μ and ν as in `adam`
        θ ← θ - η·r(t)·μ/(1-β₁ᵗ)·√(1-β₂ᵗ)/(√ν + ε) once ρ(t) > 5,   θ ← θ - ημ/(1-β₁ᵗ) before

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.radam()
      torch.radam(lr=0.001, betas=(0.9, 0.999), eps=1e-08)
    """
    return [RAdam(*betas, eps=eps, eps_hat=True)]


_OF_RPROP = {
    "lr": Argument("the first step size of each element, >= 0.", "learning_rate", NON_NEGATIVE)
}


@port("torch", _ARGUMENTS | _OF_RPROP, _complete_steps)
def rprop(
    lr: Any = 1e-2, etas: Any = (0.5, 1.2), step_sizes: Any = (1e-6, 50), *,
    capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
    differentiable: bool = False, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Rprop`.

        s = sign(g·g₋₁),   Δ ← Δη₊ where s > 0,   Δ ← Δη₋ where s < 0,   always in [Δ_min, Δ_max]
        g ← 0 where s < 0,   θ ← θ - Δ·sign(g)

    The first step sizes are in that range too. https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.rprop()
      torch.rprop(lr=0.01, etas=(0.5, 1.2), step_sizes=(1e-06, 50.0))
    """
    if callable(lr):
        raise TypeError(
            "lr of torch.rprop is a schedule: it is where the step sizes start from, and must be a number."
        )
    rule = Rprop(lr, *etas, *step_sizes, clip_first=True, keep_count=True)
    return [rule, scaling.Maximize()]


_OF_ADAFACTOR = {
    "eps": Argument(
        "ε₁ >= 0, which holds what is divided by, or None for that of the dtype; and ε₂ >= 0, the least "
        "size that parameters count as.",
        ("HeldFactoredRms.eps", "min_scale"),
        NON_NEGATIVE,
    )
}


@port("torch", _ARGUMENTS | _OF_ADAFACTOR, _complete_steps)
def adafactor(
    lr: Any = 1e-2, beta2_decay: Any = -0.8, eps: Any = (None, 1e-3), d: Any = 1.0,
    weight_decay: Any = 0.0, *, foreach: bool | None = None, maximize: bool = False,
    mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Adafactor`.

        V ≈ β̂ₜV + (1-β̂ₜ)g²,   β̂ₜ = 1 - t^(-c),   U = g/max(√V, ε₁),   Û = U/max(1, RMS(U)/d)
        θ ← θ - ηλθ - min(η, 1/√t)·max(ε₂, RMS(θ))·Û

    V of the last two axes is a number for each row and each column. Without a number for ε₁ it is that of
    float32, for narrower parameters too, and of float64. https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adafactor()
      torch.adafactor(lr=0.01, beta2_decay=-0.8, eps=(None, 0.001), d=1.0)
    """
    direction = factored(HeldFactoredRms, beta2_decay, eps[0], d, "beta2_decay")
    return [*direction, RelativeStep(lr, eps[1], none_if_zero(weight_decay), mask)]


_OF_MUON = {
    "momentum": Argument("the decay rate β of the momentum, in [0, 1).", "b1", DECAY),
    "ns_coefficients": Argument("a, b and c of Newton and Schulz's polynomial."),
    "ns_steps": Argument("how many times it is applied, 1 or more."),
    "adjust_lr_fn": Argument(
        'how long steps are: None or "original" for √max(1, out/in), "match_rms_adamw" for '
        "0.2√max(in, out).",
        is_option=True,
    ),
    "axes": Argument(
        "which axes are in and out: `aj.MatrixAxes(…)`, or a dict from regular expressions for paths to "
        "some; None for (out, in), as PyTorch's weights are. For kernels it is `aj.MatrixAxes()`."
    ),
}


@port("torch", _ARGUMENTS | _OF_MUON, functools.partial(_complete, decoupled=True))
def muon(
    lr: Any = 1e-3, weight_decay: Any = 0.1, momentum: Any = 0.95, nesterov: bool = True,
    ns_coefficients: Any = (3.4445, -4.7750, 2.0315), eps: Any = 1e-7, ns_steps: int = 5,
    adjust_lr_fn: str | None = None, *, axes: Any = None, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.Muon`, of arrays with two axes.

        μ ← βμ + (1-β)g,   m = βμ + (1-β)g with nesterov, else μ,   X₀ = m/max(‖m‖, ε)
        X ← aX + (bXXᵀ + c(XXᵀ)²)X for ns_steps times,   θ ← θ - ηλθ - η·√max(1, out/in)·X

    PyTorch computes X in bfloat16, and here it is in float32 at least: steps agree to the rounding of
    bfloat16. https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.muon()  # doctest: +ELLIPSIS
      torch.muon(lr=0.001, weight_decay=0.1, momentum=0.95, ns_coefficients=(3.4445, -4.775, 2.0315), ...)
    """
    one_of("adjust_lr_fn", adjust_lr_fn, (None, "original", "match_rms_adamw"))
    if np.shape(ns_coefficients) != (3,):
        raise ValueError(f"ns_coefficients={ns_coefficients!r} must be three numbers, a, b and c.")
    return [
        MuonOfWeights(
            momentum, eps, ns_coefficients, ns_steps, nesterov,
            "rms" if adjust_lr_fn == "match_rms_adamw" else "spectral",
            axes,
        )
    ]  # fmt: skip


_OF_ASGD = {
    "lr": Argument("the step size η at first, >= 0.", "learning_rate", NON_NEGATIVE),
    "lambd": Argument("λ' >= 0, by which parameters and the step size decay.", None, NON_NEGATIVE),
    "alpha": Argument("α >= 0, with which the step size falls.", "power", NON_NEGATIVE),
    "t0": Argument("the step after which parameters are averaged, >= 0.", "start", NON_NEGATIVE),
}


@port("torch", _ARGUMENTS | _OF_ASGD, _complete_steps)
def asgd(
    lr: Any = 1e-2, lambd: Any = 1e-4, alpha: Any = 0.75, t0: Any = 1e6, weight_decay: Any = 0,
    foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
    capturable: bool = False, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`torch.optim.ASGD`.

        g ← g + λθ,   θ ← θ - ηₜ(g + λ'θ),   ηₜ = η/(1 + λ'η(t-1))^α
        θ̄ ← θ̄ + (θ - θ̄)/max(1, t - 1 - t₀)

    θ̄ is what `aj.eval_params` gives. https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.asgd()
      torch.asgd(lr=0.01, lambd=0.0001, alpha=0.75, t0=1000000.0)
    """
    if callable(lr):
        raise TypeError(
            "lr of torch.asgd is a schedule: it is where the step size starts from, which falls by itself."
        )
    decay = none_if_zero(weight_decay)
    penalty: list[Rule] = [] if decay is None else [scaling.WeightDecay(decay, mask)]
    return [*penalty, AveragedDescent(lr, lambd, alpha, t0)]

"""`torch.optim`'s optimizers under their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._core.hyper import none_if_zero
from ..._core.rule import Rule
from ..._core.transform import build
from ..._core.transformation import Transformation
from ...rules import rms, scaling
from ...rules.adagrad import AdaGrad
from ...rules.adam import Adam, AdaMax, AMSGrad, NAdam, RAdam
from ...rules.momentum import Trace
from .._port import COMMON, DECAY, FRACTION, NON_NEGATIVE, Argument, is_absent, port

_IMPLEMENTATION = Argument("chooses an implementation in PyTorch; no effect here.")


_ARGUMENTS = {
    **COMMON,
    "lr": Argument(
        "the step size, >= 0: a number, an array of shape (), or a schedule.",
        "learning_rate",
        NON_NEGATIVE,
    ),
    "momentum": Argument("the decay of the velocity, in [0, 1]; 0 for none.", "momentum", FRACTION),
    "dampening": Argument(
        "τ in [0, 1): gradients enter the velocity with weight 1 - τ, but for the first.",
        "dampening",
        DECAY,
    ),
    "weight_decay": Argument("λ >= 0; 0 for none.", "weight_decay", NON_NEGATIVE),
    "nesterov": Argument("whether to use Nesterov's momentum.", "nesterov"),
    "lr_decay": Argument(
        "δ >= 0, for the step size lr/(1 + δ(t-1)).", "learning_rate_decay", NON_NEGATIVE
    ),
    "initial_accumulator_value": Argument(
        "the first value of the sum of squares, >= 0.", None, NON_NEGATIVE
    ),
    "eps": Argument("ε >= 0, against division by zero.", "eps", NON_NEGATIVE),
    "alpha": Argument("the decay rate of the moving averages, in [0, 1).", "decay", DECAY),
    "centered": Argument("whether to divide by the standard deviation."),
    "rho": Argument("the decay rate of both moving averages, in [0, 1).", "rho", DECAY),
    "betas": Argument("the decay rates β₁ and β₂, each in [0, 1).", ("b1", "b2"), DECAY),
    "amsgrad": Argument("whether to divide by the largest second moment so far."),
    "momentum_decay": Argument(
        "ψ >= 0, for the decay rate β₁(1 - ½·0.96^(ψt)) of the momentum.",
        "momentum_decay",
        NON_NEGATIVE,
    ),
    "decoupled_weight_decay": Argument("whether weight decay is AdamW's, and no L2 penalty."),
    "maximize": Argument("whether to climb."),
    "foreach": _IMPLEMENTATION,
    "fused": _IMPLEMENTATION,
    "capturable": _IMPLEMENTATION,
    "differentiable": _IMPLEMENTATION,
}


# Options that choose among PyTorch's implementations, and have no effect.
IMPLEMENTATIONS = {name for name, each in _ARGUMENTS.items() if each is _IMPLEMENTATION}


_port = port("torch", _ARGUMENTS)


def _optimizer(
    factory: Callable[..., Transformation],
    *directions: Rule,
    lr: Any,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    decoupled: bool = False,
    lr_decay: Any = None,
    **options: bool,
) -> Transformation:
    """-g where `maximize` is, an L2 penalty before the direction or decoupled decay after it."""
    weight_decay = none_if_zero(weight_decay)
    first: list[Rule] = [scaling.Maximize()] if options.get("maximize") else []
    last = scaling.LearningRate(lr, learning_rate_decay=none_if_zero(lr_decay), keep_count=True)
    if weight_decay is not None and decoupled:
        last = scaling.LearningRate(lr, weight_decay, mask, keep_count=True)
    elif weight_decay is not None:
        first.append(scaling.WeightDecay(weight_decay, mask))
    chosen: dict[str, Any] = {name: True for name, value in options.items() if value}
    return build(factory, *first, *directions, last, storage=storage, **chosen)


@_port
def sgd(
    lr: Any = 1e-3,
    momentum: Any = 0,
    dampening: Any = 0,
    weight_decay: Any = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    fused: bool | None = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
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
    velocity = []
    if not is_absent(momentum):
        damped = none_if_zero(dampening)
        velocity = [Trace(momentum, nesterov, damped, dampen_first=damped is None)]
    return _optimizer(
        sgd, *velocity, lr=lr, weight_decay=weight_decay, mask=mask, storage=storage,
        maximize=maximize,
    )  # fmt: skip


@_port
def adagrad(
    lr: Any = 1e-2,
    lr_decay: Any = 0,
    weight_decay: Any = 0,
    initial_accumulator_value: Any = 0,
    eps: Any = 1e-10,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.Adagrad`.

        g ← g + λθ,   G ← G + g²,   θ ← θ - η/(1 + δ(t-1)) · g/(√G + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adagrad(lr=0.1)
      torch.adagrad(lr=0.1, initial_accumulator_value=0.0, eps=1e-10)
    """
    direction = AdaGrad(initial_accumulator_value, eps, eps_in_sqrt=False)
    return _optimizer(
        adagrad, direction, lr=lr, weight_decay=weight_decay, mask=mask, storage=storage,
        lr_decay=lr_decay, maximize=maximize,
    )  # fmt: skip


@_port
def adadelta(
    lr: Any = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0,
    foreach: bool | None = None,
    *,
    capturable: bool = False,
    maximize: bool = False,
    differentiable: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.Adadelta`.

        g ← g + λθ,   E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²,   θ ← θ - ηd

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adadelta()
      torch.adadelta(lr=1.0, rho=0.9, eps=1e-06)
    """
    return _optimizer(
        adadelta, rms.AdaDelta(rho, eps), lr=lr, weight_decay=weight_decay, mask=mask,
        storage=storage, maximize=maximize,
    )  # fmt: skip


@_port
def rmsprop(
    lr: Any = 1e-2,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    momentum: Any = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
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
    velocity = [] if is_absent(momentum) else [Trace(momentum)]
    return _optimizer(
        rmsprop, kind(alpha, eps, eps_in_sqrt=False), *velocity, lr=lr, weight_decay=weight_decay,
        mask=mask, storage=storage, centered=centered, maximize=maximize,
    )  # fmt: skip


@_port
def adam(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    amsgrad: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.Adam`.

        g ← g + λθ,   μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²
        θ ← θ - η·μ/(1-β₁ᵗ)/(√(ν/(1-β₂ᵗ)) + ε)      amsgrad: the largest ν so far for ν

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adam(amsgrad=True)
      torch.adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, amsgrad=True)
    """
    return _optimizer(
        adam, _adam(betas, eps, amsgrad), lr=lr, weight_decay=weight_decay, mask=mask,
        storage=storage, decoupled=decoupled_weight_decay, amsgrad=amsgrad, maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
    )  # fmt: skip


def _adam(betas: Any, eps: Any, amsgrad: bool) -> Rule:
    b1, b2 = betas
    if amsgrad:
        return AMSGrad(b1, b2, eps, maximum_of="raw")
    return Adam(b1, b2, eps)


@_port
def adamw(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.AdamW`: `adam` with decoupled weight decay.

        θ ← θ - ηλθ - η·μ/(1-β₁ᵗ)/(√(ν/(1-β₂ᵗ)) + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adamw()
      torch.adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)
    """
    return _optimizer(
        adamw, _adam(betas, eps, amsgrad), lr=lr, weight_decay=weight_decay, mask=mask,
        storage=storage, decoupled=True, amsgrad=amsgrad, maximize=maximize,
    )  # fmt: skip


@_port
def nadam(
    lr: Any = 2e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    momentum_decay: Any = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.NAdam`.

        β₁(t) = β₁(1 - ½·0.96^(ψt)),   Π(t) = β₁(1)···β₁(t),   g ← g + λθ,   μ and ν as in `adam`
        θ ← θ - η·((1-β₁(t))/(1-Π(t))·g + β₁(t+1)/(1-Π(t+1))·μ)/(√(ν/(1-β₂ᵗ)) + ε)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.nadam()
      torch.nadam(lr=0.002, betas=(0.9, 0.999), eps=1e-08, momentum_decay=0.004)
    """
    b1, b2 = betas
    direction = NAdam(b1, b2, eps, momentum_decay=momentum_decay)
    return _optimizer(
        nadam, direction, lr=lr, weight_decay=weight_decay, mask=mask, storage=storage,
        decoupled=decoupled_weight_decay, maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
    )  # fmt: skip


@_port
def adamax(
    lr: Any = 2e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.Adamax`.

        g ← g + λθ,   μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g| + ε),   θ ← θ - ημ/((1-β₁ᵗ)ν)

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.adamax()
      torch.adamax(lr=0.002, betas=(0.9, 0.999), eps=1e-08)
    """
    return _optimizer(
        adamax, AdaMax(*betas, eps=eps), lr=lr, weight_decay=weight_decay, mask=mask,
        storage=storage, maximize=maximize,
    )  # fmt: skip


@_port
def radam(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`torch.optim.RAdam`.

        g ← g + λθ,   μ and ν as in `adam`
        θ ← θ - η·r(t)·μ/(1-β₁ᵗ)·√(1-β₂ᵗ)/(√ν + ε) once ρ(t) > 5,   θ ← θ - ημ/(1-β₁ᵗ) before

    https://docs.pytorch.org/docs/stable/optim.html.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.torch.radam()
      torch.radam(lr=0.001, betas=(0.9, 0.999), eps=1e-08)
    """
    b1, b2 = betas
    direction = RAdam(b1, b2, eps, eps_hat=True)
    return _optimizer(
        radam, direction, lr=lr, weight_decay=weight_decay, mask=mask, storage=storage,
        decoupled=decoupled_weight_decay, maximize=maximize,
        decoupled_weight_decay=decoupled_weight_decay,
    )  # fmt: skip

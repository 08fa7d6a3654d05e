"""Whole optimizers, and their preconditioners for chains: rules put together."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from .._core import hyper
from .._core.arguments import is_number, one_of
from .._core.documentation import documented
from .._core.hyper import none_if_zero
from .._core.rule import Rule
from .._core.storage import named
from .._core.transform import build
from .._core.transformation import Transformation
from .adagrad import AdaGrad
from .adam import Adam, AdaMax, AMSGrad, NAdam, RAdam
from .clipping import Clip, ClipByGlobalNorm, ClipByNorm
from .momentum import Trace
from .rms import AdaDelta, Rms, StdDev
from .scaling import Identity, LearningRate, WeightDecay

_ARGUMENTS = {
    "learning_rate": "the step size η, >= 0: a number, an array of shape (), or a schedule.",
    "momentum": "the decay γ of the velocity, in [0, 1]; None for none.",
    "nesterov": "whether to look one step ahead (Nesterov's momentum).",
    "accumulator_dtype": "the dtype of the trace, float32 at least if None.",
    "dampening": "τ in [0, 1): a gradient enters the velocity with weight 1 - τ; None for 0.",
    "velocity": '"gradients" or "steps": whether the learning rate comes after the velocity or '
    "enters it. It matters under a schedule.",
    "initial_accumulator_value": "the first value of the sum of squares, >= 0.",
    "eps": "ε >= 0, against division by zero.",
    "eps_in_sqrt": "whether ε is added inside the root or outside.",
    "decay": "the decay rate of the moving average, in [0, 1).",
    "rho": "the decay rate ρ of both moving averages, in [0, 1).",
    "initial_scale": "the first value of ν, >= 0.",
    "centered": "whether to divide by the standard deviation in place of the root mean square.",
    "bias_correction": "whether to correct the moving averages for their start at zero.",
    "b1": "the decay rate β₁ of the first moment, in [0, 1).",
    "b2": "the decay rate β₂ of the second moment, in [0, 1).",
    "eps_root": "ε_root >= 0, added inside the root; > 0 to differentiate through the update.",
    "mu_dtype": "the dtype of the first moment, float32 at least if None.",
    "eps_hat": "whether ε is the paper's ε̂, added before the bias correction.",
    "bias_correction_mu": "whether to correct the first moment for its start at zero.",
    "bias_correction_nu": "whether to correct the second moment for its start at zero.",
    "maximum_of": '"corrected" for the maximum of ν̂, "raw" for that of ν, corrected afterwards.',
    "weight_decay": "the decoupled weight decay λ, >= 0: θ ← θ - ηλθ; None or 0 for none. With one, "
    "`update` needs the parameters.",
    "mask": "which arrays decay: a tree of bools, a prefix of one, or a function of the parameters.",
    "weight_decay_mask": "optax's name for `mask`.",
    "storage": 'how the slots are kept: None or "float32" for float32 at least, "bfloat16", "int8", '
    '"int16", "factored" (for slots that are never negative), a `Storage`, or a mapping from names of '
    "slots to these.",
    "max_norm": "the largest norm c that the updates may have, >= 0; infinite for no limit.",
    "max_delta": "the largest size c that an element may have, >= 0; infinite for no limit.",
    "momentum_decay": "ψ >= 0, for the decay rate β₁(1 - ½·0.96^(ψt)) of the momentum; None for β₁.",
    "threshold": "the length ρ(t) of the average from which on the step is rectified, 4 in the paper.",
    "dampen_first": "False for v = g after the first step, whatever the dampening.",
    "eps_in_max": "whether ε is added to |g|, or to ν.",
    "flip_sign": "whether to multiply by -η or by η.",
}


_VELOCITIES = ("gradients", "steps")


_Factory = TypeVar("_Factory", bound=Callable[..., Any])


_ELSEWHERE = {
    "lr": ("learning_rate",),
    "betas": ("b1", "b2"),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "momentum": ("momentum", "b1", "decay"),
    "alpha": ("decay",),
    "rho": ("rho", "decay"),
    "epsilon": ("eps",),
    "weight_decay_mask": ("mask",),
}
"""What PyTorch and Keras call an argument, and what it may be called here."""


_OTHERWISE = {
    "amsgrad": "it is an optimizer of its own, aj.amsgrad(…)",
    "maximize": "turn the sign round behind it, aj.scale_by_learning_rate(…, flip_sign=False)",
    "clipnorm": "clip before it, aj.chain(aj.clip_by_norm(…), …)",
    "global_clipnorm": "clip before it, aj.chain(aj.clip_by_global_norm(…), …)",
    "clipvalue": "clip before it, aj.chain(aj.clip(…), …)",
}
"""What does here what an argument of PyTorch or Keras does."""


_FREE_RATE = ("sgd", "adagrad", "adadelta", "scale_by_learning_rate")
"""Where a learning rate of any size can make sense: steps are not of its size."""


def _documented(factory: _Factory) -> _Factory:
    """A decorator that completes the docstring, and tells what is probably not meant."""
    name, names = factory.__name__, list(inspect.signature(factory).parameters)

    @functools.wraps(factory)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if unknown := [argument for argument in kwargs if argument not in names]:
            raise TypeError(_unknown(name, names, unknown[0]))
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        rate, decay = given.get("learning_rate"), given.get("weight_decay")
        if name not in _FREE_RATE and _is_above_one(rate):
            warnings.warn(
                f"learning_rate={rate!r} in {name}: whatever the size of the gradients, each step moves "
                "each parameter by about so much. 1e-4 to 1e-1 are usual. If it is meant, give it as an "
                f"array, jnp.float32({rate!r}), and nothing is said.",
                stacklevel=2,
            )
        if _is_above_one(decay):
            warnings.warn(
                f"weight_decay={decay!r} in {name}: each step takes the learning rate times so much of "
                "every parameter away. 1e-4 to 1e-1 are usual. If it is meant, give it as an array, "
                f"jnp.float32({decay!r}), and nothing is said.",
                stacklevel=2,
            )
        return factory(*args, **kwargs)

    return documented(_ARGUMENTS)(checked)  # type: ignore[return-value]


def _is_above_one(value: Any) -> bool:
    """Whether it is a number above 1. Arrays are not looked at: they may be tracers."""
    return is_number(value) and 1 < value < math.inf


def _unknown(name: str, names: list[str], argument: str) -> str:
    """What to write in place of an argument that an optimizer does not have."""
    here = [each for each in _ELSEWHERE.get(argument, ()) if each in names]
    here = (
        here
        if argument == "betas"
        else here[:1] or difflib.get_close_matches(argument, names, 1, cutoff=0.75)
    )
    said = f"here it is {' and '.join(here)}" if here else f"it takes {', '.join(names)}"
    said = _OTHERWISE.get(argument, said)
    if argument in ("lr", "betas", "alpha", "amsgrad", "maximize"):
        said += ". aj.interop.torch has the optimizers under PyTorch's names"
    elif argument in ("beta_1", "beta_2", "epsilon", "clipnorm", "global_clipnorm", "clipvalue"):
        said += ". aj.interop.keras has the optimizers under Keras's names"
    elif argument == "momentum":
        said += ". aj.interop.torch and aj.interop.keras have the optimizers under their names"
    return f"{name} takes no argument {argument!r}: {said}."


def _descend(
    factory: Callable[..., Transformation],
    direction: Rule,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    *,
    decays: bool = False,
    last: tuple[Rule, ...] = (),
    **options: Any,
) -> Transformation:
    """θ ← θ - η(d + λθ), for a direction d: by the rules that optax chains, so that the state is its.

    decays: whether weight decay has a place in the state even if there is none.
    last: rules after the learning rate.
    """
    decay = _decay(factory, weight_decay, mask, decays)
    return build(
        factory, direction, *decay, LearningRate(learning_rate), *last, storage=storage, **options
    )


def _decay(
    factory: Callable[..., Transformation],
    weight_decay: Any,
    mask: Any,
    always: bool = False,
    learning_rate: Any = None,
) -> tuple[Rule, ...]:
    """The rule that decays weights, if one is needed."""
    weight_decay = none_if_zero(weight_decay)
    # The rule alone takes negative numbers too, as optax's does.
    hyper.hyperparameter(factory.__name__, "weight_decay", weight_decay, hyper.Interval(0.0))
    if weight_decay is None and mask is None and not always:
        return ()
    return (WeightDecay(weight_decay, mask, learning_rate),)


def _descend_with_velocity(
    factory: Callable[..., Transformation],
    direction: Rule | None,
    learning_rate: Any,
    trace: Rule,
    of_steps: bool,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    **options: Any,
) -> Transformation:
    """The same with momentum: a velocity of directions, or of steps, learning rate included."""
    first = () if direction is None else (direction,)
    rate = LearningRate(learning_rate)
    if not of_steps:
        rest = (trace, *_decay(factory, weight_decay, mask), rate)
    else:  # The decay stays out of the velocity, and so comes after the learning rate.
        decay = _decay(factory, weight_decay, mask, learning_rate=learning_rate)
        rest = (rate, trace, *decay)
    return build(factory, *first, *rest, storage=storage, **options)


@_documented
def sgd(
    learning_rate: Any,
    momentum: Any = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Any = None,
    dampen_first: bool = True,
    velocity: str = "gradients",
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Gradient descent, with momentum in each of its usual forms.

        θ ← θ - ηg                                       without momentum
        v ← γv + g,        θ ← θ - ηv                    a velocity of gradients
        v ← γv + ηg,       θ ← θ - v                     a velocity of steps, velocity="steps"
        v ← γv + (1-τ)g,   θ ← θ - ηv                    dampened; with τ = γ a moving average
        v ← γv + g,        θ ← θ - η(γv + g)             Nesterov

    Robbins & Monro 1951, https://doi.org/10.1214/aoms/1177729586; Polyak 1964,
    https://doi.org/10.1016/0041-5553(64)90137-5; Sutskever et al. 2013,
    https://proceedings.mlr.press/v28/sutskever13.html. State: none, or one float32 per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.sgd(0.1, momentum=0.9)
      sgd(learning_rate=0.1, momentum=0.9)
    """
    one_of("velocity", velocity, _VELOCITIES)
    if momentum is None and none_if_zero(dampening) is not None:
        raise ValueError(f"dampening={dampening!r} needs a momentum, whose velocity it dampens.")
    if momentum is None:
        return _descend(sgd, Identity(), learning_rate, weight_decay, mask, storage)
    storage = named.with_dtype(storage, "trace", accumulator_dtype)
    trace = Trace(momentum, nesterov, none_if_zero(dampening), dampen_first)
    options = {} if velocity == "gradients" else {"velocity": velocity}
    of_steps = velocity == "steps"
    return _descend_with_velocity(
        sgd, None, learning_rate, trace, of_steps, weight_decay, mask, storage, **options
    )


@_documented
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

        G ← G + g²,   θ ← θ - ηg/√(G + ε)       or g/(√G + ε) with eps_in_sqrt=False

    Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html, whose δ is outside the root,
    as with eps_in_sqrt=False, and who start at G = 0. State: one float32 per parameter.

    Some published texts print θ ← θ - η·s/√(s + ε), without the gradient, or multiply the gradient
    by √s. Those are misprints: they do not minimise.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adagrad(0.1)
      adagrad(learning_rate=0.1, initial_accumulator_value=0.1, eps=1e-07)
    """
    rule = AdaGrad(initial_accumulator_value, eps, eps_in_sqrt)
    return _descend(adagrad, rule, learning_rate, weight_decay, mask, storage)


@_documented
def adadelta(
    learning_rate: Any = None,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    weight_decay_mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """AdaDelta: steps in the units of the parameters, without a learning rate to tune.

        E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²,   θ ← θ - ηd

    Zeiler 2012, https://arxiv.org/abs/1212.5701. State: two float32 per parameter. A learning rate
    of None is the paper's η = 1; optax then omits the sign as well, and ascends.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adadelta()
      adadelta(learning_rate=1.0, rho=0.9, eps=1e-06)
    """
    learning_rate = 1.0 if learning_rate is None else learning_rate
    if weight_decay_mask is not None and mask is not None:
        raise ValueError("mask and weight_decay_mask are two names of one argument: give one.")
    mask = weight_decay_mask if mask is None else mask
    # optax decays first, and has its entry there.
    return _descend(
        adadelta, AdaDelta(rho, eps), learning_rate, weight_decay, mask, storage,
        decays=True, order=(1, 0, 2),
    )  # fmt: skip


@_documented
def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    velocity: str = "steps",
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """RMSprop: steps relative to the root mean square of recent gradients.

        ν ← ρν + (1-ρ)g²,   d = g/√(ν + ε)      or g/(√ν + ε) with eps_in_sqrt=False
        θ ← θ - ηd                              without momentum
        v ← γv + ηd,   θ ← θ - v                with momentum, velocity="steps"
        v ← γv + d,    θ ← θ - ηv               with momentum, velocity="gradients" (PyTorch)

    centered: μ ← ρμ + (1-ρ)g, and ν - μ² in place of ν (Graves 2013, https://arxiv.org/abs/1308.0850).
    Tieleman & Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf.
    State: one float32 per parameter, one more each for momentum and centered.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.rmsprop(0.01, momentum=0.9)
      rmsprop(learning_rate=0.01, decay=0.9, eps=1e-08, initial_scale=0.0, momentum=0.9)
    """
    one_of("velocity", velocity, _VELOCITIES)
    rule = (StdDev if centered else Rms)(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    options: dict[str, Any] = {"centered": True} if centered else {}
    if momentum is None:
        return _descend(
            rmsprop, rule, learning_rate, weight_decay, mask, storage, last=(Identity(),), **options
        )
    if velocity != "steps":
        options["velocity"] = velocity
    trace = Trace(momentum, nesterov)
    of_steps = velocity == "steps"
    return _descend_with_velocity(
        rmsprop, rule, learning_rate, trace, of_steps, weight_decay, mask, storage, **options
    )


@_documented
def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Adam: a moving average of gradients over the root of one of their squares.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²,   μ̂ = μ/(1-β₁ᵗ),   ν̂ = ν/(1-β₂ᵗ)
        θ ← θ - ημ̂/(√(ν̂ + ε_root) + ε)

    Kingma & Ba 2015, https://arxiv.org/abs/1412.6980. With bias_correction=False it is RMSprop with
    an average of gradients, μ/(√ν + ε). State: two float32 per parameter.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, optax
      >>> tx = aj.adam(1e-3)
      >>> tx
      adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)  # the gradients of ‖w‖²/2
      >>> print(optax.apply_updates(params, updates)["w"])
      [ 0.999 -1.999]
    """
    rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return _descend(adam, rule, learning_rate, weight_decay, mask, storage)


@_documented
def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """AdamW: Adam with decoupled weight decay, θ ← θ - η(μ̂/(√ν̂ + ε) + λθ).

    Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101. State: two float32 per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adamw(1e-3, weight_decay=0.01)
      adamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, weight_decay=0.01)
    """
    rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return _descend(adamw, rule, learning_rate, weight_decay, mask, storage, decays=True)


@_documented
def nadam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_hat: bool = False,
    momentum_decay: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """NAdam: Adam with Nesterov's momentum, μ̂ = β₁μ/(1-β₁ᵗ⁺¹) + (1-β₁)g/(1-β₁ᵗ).

    Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. As in optax, ν̂ has no further
    factor β₂, and β₁ no schedule of its own unless momentum_decay is given: the paper's is 1/250.
    State: two float32 per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.nadam(1e-3)
      nadam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    if momentum_decay is None:
        rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    elif nesterov and bias_correction:
        rule = NAdam(b1, b2, eps, eps_root, momentum_decay, eps_hat)
    else:
        raise ValueError(
            f"momentum_decay={momentum_decay!r} needs nesterov=True and bias_correction=True."
        )
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return _descend(nadam, rule, learning_rate, weight_decay, mask, storage)


@_documented
def nadamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """NAdamW: NAdam with decoupled weight decay.

    Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ; Loshchilov & Hutter 2019,
    https://arxiv.org/abs/1711.05101. State: two float32 per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.nadamw(1e-3)
      nadamw(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, weight_decay=0.0001)
    """
    rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return _descend(nadamw, rule, learning_rate, weight_decay, mask, storage, decays=True)


@_documented
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
    """AMSGrad: Adam whose second moment never falls.

        ν_max ← max(ν_max, ν̂),   θ ← θ - ημ̂/(√(ν_max + ε_root) + ε)

    Reddi, Kale & Kumar 2018, https://arxiv.org/abs/1904.09237, who correct no bias. State: three
    float32 per parameter. PyTorch's AMSGrad is maximum_of="raw".

    Example:
      >>> import adaptive_jax as aj
      >>> aj.amsgrad(1e-3)
      amsgrad(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    rule = AMSGrad(
        b1, b2, eps, eps_root, bias_correction_mu, bias_correction_nu, maximum_of, eps_hat
    )
    storage = named.with_dtype(storage, "mu", mu_dtype)
    return _descend(amsgrad, rule, learning_rate, weight_decay, mask, storage)


@_documented
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
    """AdaMax: Adam with the largest recent gradient in place of the root mean square.

        μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g| + ε),   θ ← θ - ημ/((1-β₁ᵗ)ν)

    Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, section 7.1, who have no ε. State: two float32
    per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.adamax(1e-3)
      adamax(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08)
    """
    rule = AdaMax(b1, b2, eps, eps_in_max)
    return _descend(adamax, rule, learning_rate, weight_decay, mask, storage)


@_documented
def radam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """RAdam: Adam that starts as momentum, until its second moment has seen enough steps.

        θ ← θ - η·r(t)·μ̂/(√(ν̂ + ε_root) + ε) once ρ(t) >= threshold,  θ ← θ - ημ̂ before

    where ρ(t) counts the steps that the average of squares is worth, and r(t) → 1 makes up for its
    variance. Liu et al. 2020, https://arxiv.org/abs/1908.03265. State: two float32 per parameter.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.radam(1e-3)
      radam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, threshold=5.0)
    """
    rule = RAdam(b1, b2, eps, eps_root, nesterov, eps_hat=eps_hat, threshold=threshold)
    return _descend(radam, rule, learning_rate, weight_decay, mask, storage)


@_documented
def trace(
    decay: Any,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Any = None,
    dampen_first: bool = True,
    storage: Any = None,
) -> Transformation:
    """Momentum for a chain: v ← γv + (1-τ)g. See `sgd`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.trace(0.9), aj.scale_by_learning_rate(0.1))
      chain(trace(decay=0.9), scale_by_learning_rate(learning_rate=0.1))
    """
    storage = named.with_dtype(storage, "trace", accumulator_dtype)
    rule = Trace(decay, nesterov, none_if_zero(dampening), dampen_first)
    return build(trace, rule, storage=storage)


@_documented
def scale_by_rss(
    initial_accumulator_value: Any = 0.1,
    eps: Any = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    storage: Any = None,
) -> Transformation:
    """AdaGrad's direction for a chain, g/√(G + ε). See `adagrad`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_rss()
      scale_by_rss(initial_accumulator_value=0.1, eps=1e-07)
    """
    return build(
        scale_by_rss, AdaGrad(initial_accumulator_value, eps, eps_in_sqrt), storage=storage
    )


@_documented
def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6, *, storage: Any = None) -> Transformation:
    """AdaDelta's direction for a chain. See `adadelta`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_adadelta()
      scale_by_adadelta(rho=0.9, eps=1e-06)
    """
    return build(scale_by_adadelta, AdaDelta(rho, eps), storage=storage)


@_documented
def scale_by_rms(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    storage: Any = None,
) -> Transformation:
    """RMSprop's direction for a chain, g/√(ν + ε). See `rmsprop`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_rms()
      scale_by_rms(decay=0.9, eps=1e-08, initial_scale=0.0)
    """
    rule = Rms(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return build(scale_by_rms, rule, storage=storage)


@_documented
def scale_by_stddev(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    storage: Any = None,
) -> Transformation:
    """Centered RMSprop's direction for a chain, g/√(ν - μ² + ε). See `rmsprop`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_stddev()
      scale_by_stddev(decay=0.9, eps=1e-08, initial_scale=0.0)
    """
    rule = StdDev(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return build(scale_by_stddev, rule, storage=storage)


@_documented
def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """Adam's direction for a chain, μ̂/(√(ν̂ + ε_root) + ε). See `adam`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_adam()
      scale_by_adam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    rule = Adam(b1, b2, eps, eps_root, nesterov, bias_correction, eps_hat)
    return build(scale_by_adam, rule, storage=named.with_dtype(storage, "mu", mu_dtype))


@_documented
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
    """AMSGrad's direction for a chain. See `amsgrad`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_amsgrad()
      scale_by_amsgrad(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    rule = AMSGrad(
        b1, b2, eps, eps_root, bias_correction_mu, bias_correction_nu, maximum_of, eps_hat
    )
    return build(scale_by_amsgrad, rule, storage=named.with_dtype(storage, "mu", mu_dtype))


@_documented
def scale_by_adamax(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    eps_in_max: bool = True,
    storage: Any = None,
) -> Transformation:
    """AdaMax's direction for a chain. See `adamax`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_adamax()
      scale_by_adamax(b1=0.9, b2=0.999, eps=1e-08)
    """
    return build(scale_by_adamax, AdaMax(b1, b2, eps, eps_in_max), storage=storage)


@_documented
def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
    eps_hat: bool = False,
    storage: Any = None,
) -> Transformation:
    """RAdam's direction for a chain. See `radam`.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_radam()
      scale_by_radam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, threshold=5.0)
    """
    rule = RAdam(b1, b2, eps, eps_root, nesterov, eps_hat=eps_hat, threshold=threshold)
    return build(scale_by_radam, rule, storage=storage)


@_documented
def clip(max_delta: Any) -> Transformation:
    """Holds each element between -c and c. It takes no complex arrays.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.clip(0.5)
      clip(max_delta=0.5)
    """
    return build(clip, Clip(max_delta))


@_documented
def clip_by_norm(max_norm: Any) -> Transformation:
    """Scales each array so that its own norm is at most c: g · min(1, c/‖g‖).

    Example:
      >>> import adaptive_jax as aj
      >>> aj.clip_by_norm(1.0)
      clip_by_norm(max_norm=1.0)
    """
    return build(clip_by_norm, ClipByNorm(max_norm))


@_documented
def clip_by_global_norm(max_norm: Any) -> Transformation:
    """Scales all arrays by one factor so that their common norm is at most c: g · min(1, c/‖g‖).

    Pascanu, Mikolov & Bengio 2013, https://arxiv.org/abs/1211.5063. The norm is summed in float32 at
    least, and does not overflow. To see in the state which steps are clipped, measure before it.

    Example:
      >>> import adaptive_jax as aj
      >>> norm = aj.monitor({"norm": aj.global_norm})
      >>> aj.chain(norm, aj.clip_by_global_norm(1.0), aj.adam(1e-3))  # doctest: +ELLIPSIS
      chain(monitor(norm), clip_by_global_norm(max_norm=1.0), adam(learning_rate=0.001, ...))
    """
    return build(clip_by_global_norm, ClipByGlobalNorm(max_norm))


@_documented
def add_decayed_weights(weight_decay: Any = 0.0, mask: Any = None) -> Transformation:
    """Adds λθ to the updates: weight decay for a chain. `update` needs the parameters.

    Before a preconditioner it is an L2 penalty; after it, and before the learning rate, decoupled.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.add_decayed_weights(0.01)
      add_decayed_weights(weight_decay=0.01)
    """
    return build(add_decayed_weights, WeightDecay(weight_decay, mask))


@_documented
def scale_by_learning_rate(learning_rate: Any, *, flip_sign: bool = True) -> Transformation:
    """Multiplies by -η: the end of a chain that descends.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.scale_by_learning_rate(0.1)
      scale_by_learning_rate(learning_rate=0.1)
    """
    return build(scale_by_learning_rate, LearningRate(learning_rate, flip_sign=flip_sign))

"""`keras.optimizers` under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..._core.hyper import none_if_zero
from ..._core.rule import Rule
from ...rules import clipping, rms, scaling
from ...rules.adagrad import AdaGrad
from ...rules.adam import NAdam
from ...rules.adamax import AdaMax
from ...rules.factored import FactoredRms, RelativeStep
from ...rules.layerwise import TrustedStep
from ...rules.momentum import Trace
from ...rules.orthogonal import MuonOfSums
from ...rules.regularisation import FtrlFromZero
from ...rules.schedule_free import EvenScheduleFreeAdamW
from ...rules.sign import Lion
from .._directions import factored, moments, velocity
from .._port import (
    COMMON,
    DECAY,
    FRACTION,
    LEARNING_RATE,
    LIMIT,
    NON_NEGATIVE,
    NON_POSITIVE,
    POSITIVE,
    SHARE,
    Argument,
    is_absent,
    port,
)
from .matrices import of_each_array

_ARGUMENTS = {
    **COMMON,
    "learning_rate": LEARNING_RATE,
    "epsilon": Argument("ε >= 0, against division by zero.", "eps", NON_NEGATIVE),
    "rho": Argument("the decay rate of the moving averages, in [0, 1).", None, DECAY),
    "beta_1": Argument("the decay rate of the first moment, in [0, 1).", "b1", DECAY),
    "beta_2": Argument("the decay rate of the second moment, in [0, 1).", "b2", DECAY),
    "beta_2_decay": Argument(
        "the exponent -c <= 0 of t in 1 - β̂ₜ = t^(-c).", "exponent", NON_POSITIVE
    ),
    "epsilon_1": Argument("ε₁ >= 0, added to each g².", "FactoredRms.eps", NON_NEGATIVE),
    "epsilon_2": Argument(
        "ε₂ >= 0, the least size that parameters count as.", "min_scale", NON_NEGATIVE
    ),
    "clip_threshold": Argument(
        "the largest root mean square that a direction may have, >= 0.", "threshold", LIMIT
    ),
    "relative_step": Argument("has no effect in Keras either: the step is relative with both."),
    "weight_decay": Argument("λ >= 0: θ ← θ - ηλθ; None for none.", None, NON_NEGATIVE),
    "clipnorm": Argument(
        "the largest norm of each gradient; None for none.", "ClipByNorm.max_norm", NON_NEGATIVE
    ),
    "clipvalue": Argument(
        "the largest size of an element; None for none.", "Clip.max_delta", NON_NEGATIVE
    ),
    "global_clipnorm": Argument(
        "the largest norm of all gradients together; None for none.",
        "ClipByGlobalNorm.max_norm",
        NON_NEGATIVE,
    ),
    "use_ema": Argument("refused: keep an average of the parameters beside them, with optax.ema."),
    "ema_momentum": Argument("belongs to use_ema."),
    "ema_overwrite_frequency": Argument("belongs to use_ema."),
    "loss_scale_factor": Argument("refused: scale the loss, and divide the gradients by it."),
    "gradient_accumulation_steps": Argument("refused: wrap the optimizer in optax.MultiSteps."),
    "name": Argument("what Keras calls the optimizer; no effect here."),
}


def _clipping(given: Mapping[str, Any]) -> list[Rule]:
    """The clipping of gradients, first of all; what is no part of an optimizer is refused."""
    for name in ("use_ema", "loss_scale_factor", "gradient_accumulation_steps"):
        if given[name]:
            remedy = _ARGUMENTS[name].meaning.partition(": ")[2]
            raise ValueError(f"{name}={given[name]!r} is no part of an optimizer here: {remedy}")
    kinds = {
        "clipnorm": clipping.ClipByNorm,
        "clipvalue": clipping.Clip,
        "global_clipnorm": clipping.ClipByGlobalNorm,
    }
    first = [kind(given[name]) for name, kind in kinds.items() if not is_absent(given[name])]
    if len(first) > 1:
        limits = ", ".join(f"{name}={given[name]!r}" for name in kinds)
        raise ValueError(
            f"only one of clipnorm, clipvalue and global_clipnorm can be set, got {limits}."
        )
    return first


def _complete(direction: Sequence[Rule], given: Mapping[str, Any]) -> Sequence[Rule]:
    """Clipping, a direction, and decoupled weight decay beside a velocity of steps, if there is one."""
    first, rate, mask = _clipping(given), given["learning_rate"], given["mask"]
    decay = none_if_zero(given["weight_decay"])
    of_steps = [rule for rule in direction if isinstance(rule, Trace)]
    if not of_steps:
        return [*first, *direction, scaling.LearningRate(rate, decay, mask, keep_count=True)]
    direction = [rule for rule in direction if not isinstance(rule, Trace)]
    last = [] if decay is None else [scaling.WeightDecay(decay, mask, rate)]
    return [*first, *direction, scaling.LearningRate(rate, keep_count=True), *of_steps, *last]


_port = port("keras", _ARGUMENTS, _complete)


@_port
def sgd(
    learning_rate: Any = 0.01, momentum: Any = 0.0, nesterov: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.SGD`.

        v ← γv - ηg,   θ ← θ - ηλθ + v      Nesterov: θ - ηλθ + γv - ηg

    https://keras.io/api/optimizers/sgd/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.sgd(momentum=0.9)
      keras.sgd(learning_rate=0.01, momentum=0.9)
    """
    return velocity(momentum, nesterov)


@_port
def adagrad(
    learning_rate: Any = 0.001, initial_accumulator_value: Any = 0.1, epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Adagrad`.

        G ← G + g²,   θ ← θ - ηλθ - ηg/√(G + ε)

    https://keras.io/api/optimizers/adagrad/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adagrad()
      keras.adagrad(learning_rate=0.001, initial_accumulator_value=0.1, epsilon=1e-07)
    """
    return [AdaGrad(initial_accumulator_value, epsilon)]


@_port
def adadelta(
    learning_rate: Any = 0.001, rho: Any = 0.95, epsilon: Any = 1e-7, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Adadelta`.

        E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²,   θ ← θ - ηλθ - ηd

    https://keras.io/api/optimizers/adadelta/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adadelta()
      keras.adadelta(learning_rate=0.001, rho=0.95, epsilon=1e-07)
    """
    return [rms.AdaDelta(rho, epsilon)]


@_port
def rmsprop(
    learning_rate: Any = 0.001, rho: Any = 0.9, momentum: Any = 0.0, epsilon: Any = 1e-7,
    centered: bool = False, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.RMSprop`.

        ν ← ρν + (1-ρ)g²,   d = g/√(ν + ε)      centered: √(ν - μ² + ε), μ ← ρμ + (1-ρ)g
        v ← γv + ηd,   θ ← θ - ηλθ - v

    https://keras.io/api/optimizers/rmsprop/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.rmsprop()
      keras.rmsprop(learning_rate=0.001, rho=0.9, epsilon=1e-07)
    """
    kind = rms.StdDev if centered else rms.Rms
    return [kind(rho, epsilon), *velocity(momentum)]


@_port
def adam(
    learning_rate: Any = 0.001, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7,
    amsgrad: bool = False, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Adam`.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²      amsgrad: the largest ν so far for ν
        θ ← θ - ηλθ - η·√(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√ν + ε)

    https://keras.io/api/optimizers/adam/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adam()
      keras.adam(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return [moments((beta_1, beta_2), epsilon, amsgrad, eps_hat=True)]


@_port
def adamw(
    learning_rate: Any = 0.001, weight_decay: Any = 0.004, beta_1: Any = 0.9,
    beta_2: Any = 0.999, epsilon: Any = 1e-7, amsgrad: bool = False,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.AdamW`.

    `adam` with weight decay by default.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²      amsgrad: the largest ν so far for ν
        θ ← θ - ηλθ - η·√(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√ν + ε)

    https://keras.io/api/optimizers/adamw/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adamw()
      keras.adamw(learning_rate=0.001, weight_decay=0.004, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return [moments((beta_1, beta_2), epsilon, amsgrad, eps_hat=True)]


@_port
def nadam(
    learning_rate: Any = 0.001, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Nadam`.

        β₁(t) = β₁(1 - ½·0.96ᵗ),   Π(t) = β₁(1)···β₁(t),   μ and ν as in `adam`
        θ ← θ - ηλθ - η·(β₁(t+1)/(1-Π(t+1))·μ + (1-β₁(t))/(1-Π(t))·g)/(√(ν/(1-β₂ᵗ)) + ε)

    https://keras.io/api/optimizers/nadam/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.nadam()
      keras.nadam(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return [NAdam(beta_1, beta_2, epsilon, momentum_decay=1.0)]


@_port
def adamax(
    learning_rate: Any = 0.001, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Adamax`.

        μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g|),   θ ← θ - ηλθ - ημ/((1-β₁ᵗ)(ν + ε))

    https://keras.io/api/optimizers/adamax/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adamax()
      keras.adamax(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return [AdaMax(beta_1, beta_2, epsilon, eps_in_max=False)]


@_port
def lion(
    learning_rate: Any = 0.001, beta_1: Any = 0.9, beta_2: Any = 0.99, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Lion`.

        c = β₁μ + (1-β₁)g,   μ ← β₂μ + (1-β₂)g,   θ ← θ - ηλθ - η·sign(c)

    https://keras.io/api/optimizers/lion/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.lion()
      keras.lion(learning_rate=0.001, beta_1=0.9, beta_2=0.99)
    """
    return [Lion(beta_1, beta_2)]


def _complete_steps(steps: Sequence[Rule], given: Mapping[str, Any]) -> Sequence[Rule]:
    """Clipping, before rules whose last one has the learning rate and the weight decay."""
    return [*_clipping(given), *steps]


@port("keras", _ARGUMENTS, _complete_steps)
def adafactor(
    learning_rate: Any = 0.001, beta_2_decay: Any = -0.8, epsilon_1: Any = 1e-30,
    epsilon_2: Any = 1e-3, clip_threshold: Any = 1.0, relative_step: bool = True,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Adafactor`.

        V ≈ β̂ₜV + (1-β̂ₜ)(g² + ε₁),   β̂ₜ = 1 - t^(-c),   U = g/√V,   Û = U/max(1, RMS(U)/d)
        θ ← θ - ηλθ,   θ ← θ - min(η, 1/√t)·max(ε₂, RMS(θ))·Û

    V of the last two axes is a number for each row and each column here; Keras keeps all of V too, which
    `export_state` makes of them. https://keras.io/api/optimizers/adafactor/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adafactor(learning_rate=0.01)  # doctest: +ELLIPSIS
      keras.adafactor(learning_rate=0.01, beta_2_decay=-0.8, epsilon_1=1e-30, epsilon_2=0.001, ...)
    """
    decay = none_if_zero(weight_decay)
    return [
        *factored(FactoredRms, beta_2_decay, epsilon_1, clip_threshold, "beta_2_decay"),
        RelativeStep(learning_rate, epsilon_2, decay, mask, decays_first=True),
    ]


@port("keras", _ARGUMENTS, _complete_steps)
def lamb(
    learning_rate: Any = 0.001, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Lamb`.

        μ and ν as in `adam`,   r = μ/(1-β₁ᵗ)/(√(ν/(1-β₂ᵗ)) + ε)
        θ ← θ - ηλθ,   θ ← θ - η·‖θ‖/‖r‖·r

    The ratio is 1 where a norm is 0. https://keras.io/api/optimizers/lamb/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.lamb()
      keras.lamb(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    decay = none_if_zero(weight_decay)
    return [moments((beta_1, beta_2), epsilon, False), TrustedStep(learning_rate, decay, mask)]


_OF_FTRL = {
    "learning_rate": Argument(
        "the step size, > 0: a number, an array of shape (), or a schedule.", None, POSITIVE
    ),
    "learning_rate_power": Argument("-p <= 0, for a step size η/nᵖ.", None, NON_POSITIVE),
    "l1_regularization_strength": Argument("λ₁ >= 0.", "l1", NON_NEGATIVE),
    "l2_regularization_strength": Argument("λ₂ >= 0.", "l2", NON_NEGATIVE),
    "l2_shrinkage_regularization_strength": Argument(
        "s >= 0, of an L2 penalty that n knows nothing of.", "l2_shrinkage", NON_NEGATIVE
    ),
    "beta": Argument("β >= 0, added to nᵖ.", None, NON_NEGATIVE),
}


@port("keras", _ARGUMENTS | _OF_FTRL, _complete_steps)
def ftrl(
    learning_rate: Any = 0.001, learning_rate_power: Any = -0.5,
    initial_accumulator_value: Any = 0.1, l1_regularization_strength: Any = 0.0,
    l2_regularization_strength: Any = 0.0, l2_shrinkage_regularization_strength: Any = 0.0,
    beta: Any = 0.0, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Ftrl`.

        θ ← θ - ηλθ,   z ← z + g + 2sθ - ((n + g²)ᵖ - nᵖ)/η·θ,   n ← n + g²
        θ ← (min(max(z, -λ₁), λ₁) - z)/((β + nᵖ)/η + 2λ₂)

    z starts at 0, whatever the parameters are: the first step moves all of them close to 0.
    https://keras.io/api/optimizers/ftrl/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.ftrl(l1_regularization_strength=1e-3)  # doctest: +ELLIPSIS
      keras.ftrl(learning_rate=0.001, learning_rate_power=-0.5, initial_accumulator_value=0.1, ...)
    """
    if callable(learning_rate_power):
        raise TypeError(
            "learning_rate_power is a schedule: it is an exponent, and must be a number."
        )
    return [
        FtrlFromZero(
            learning_rate, -learning_rate_power, beta, l1_regularization_strength,
            l2_regularization_strength, l2_shrinkage_regularization_strength,
            initial_accumulator_value, none_if_zero(weight_decay), mask,
        )
    ]  # fmt: skip


_OF_SCHEDULE_FREE = {
    "beta_1": Argument("β₁ in (0, 1], the share of the average in what is trained.", "b1", SHARE),
    "warmup_steps": Argument(
        "T >= 0, steps of a linear rise to η; 0 for none.", None, NON_NEGATIVE
    ),
}


@port("keras", _ARGUMENTS | _OF_SCHEDULE_FREE, _complete_steps)
def schedule_free_adamw(
    learning_rate: Any = 0.0025, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-8,
    warmup_steps: Any = 0, weight_decay: Any = None,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.ScheduleFreeAdamW`, with JAX behind it.

        γ = η·min(1, t/T),   ν as in `adam`,   y ← y - ηλy,   z ← z - γg/(√(ν/(1-β₂ᵗ)) + ε)
        x ← (1-1/t)x + z/t,   y ← (1-β₁)z + β₁x

    y is trained; x, which Keras cannot give, is what `aj.eval_params` gives. With PyTorch behind it, Keras
    takes other steps. https://keras.io/api/optimizers/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.schedule_free_adamw()
      keras.schedule_free_adamw(learning_rate=0.0025, beta_1=0.9, beta_2=0.999, epsilon=1e-08)
    """
    if callable(beta_1):
        raise TypeError(
            "beta_1 is a schedule: x follows from y and z by it, and it must be a number."
        )
    rule = EvenScheduleFreeAdamW(
        learning_rate, none_if_zero(warmup_steps), beta_1, beta_2, epsilon, none_if_zero(weight_decay),
        mask,
    )  # fmt: skip
    return [rule]


_OF_MUON = {
    "adam_beta_1": Argument("β₁ of Adam, in [0, 1).", "Adam.b1", DECAY),
    "adam_beta_2": Argument("β₂ of Adam, in [0, 1).", "Adam.b2", DECAY),
    "adam_weight_decay": Argument(
        "λ >= 0 of what is for Adam; None for none.",
        "RatedStep.weight_decay",
        NON_NEGATIVE,
        is_optional=True,
    ),
    "epsilon": Argument("ε >= 0 of Adam.", "Adam.eps", NON_NEGATIVE),
    "weight_decay": Argument(
        "λ >= 0 of what is for Muon: θ ← θ - ηλθ; None for none.",
        "LearningRate.weight_decay",
        NON_NEGATIVE,
        is_optional=True,
    ),
    "exclude_layers": Argument(
        "regular expressions: what has one of them in its path, a/b/c, is for Adam."
    ),
    "exclude_embeddings": Argument('whether what has "embedding" in its path is for Adam.'),
    "muon_a": Argument("a of Newton and Schulz's polynomial."),
    "muon_b": Argument("b of it."),
    "muon_c": Argument("c of it."),
    "adam_lr_ratio": Argument("ρ' >= 0: the step size of Adam is ρ'η.", "ratio", NON_NEGATIVE),
    "momentum": Argument("the decay β of Muon's momentum, in [0, 1].", "MuonOfSums.b1", FRACTION),
    "ns_steps": Argument("how many times the polynomial is applied, 1 or more."),
    "nesterov": Argument("whether Muon's momentum is Nesterov's."),
    "rms_rate": Argument(
        "ρ >= 0, for steps ρ√max(in, out) times as long; None for steps as they are.",
        None,
        NON_NEGATIVE,
        is_optional=True,
    ),
}


def _complete_pair(pair: Sequence[Rule], given: Mapping[str, Any]) -> Sequence[Rule]:
    """Clipping, and a step behind each direction."""
    muon, adam = pair
    rate, mask = given["learning_rate"], given["mask"]
    decay, decay_of_adam = map(none_if_zero, (given["weight_decay"], given["adam_weight_decay"]))
    step_of_muon = scaling.LearningRate(rate, decay, mask, keep_count=True)
    step_of_adam = scaling.RatedStep(
        rate, decay_of_adam, mask, keep_count=True, ratio=given["adam_lr_ratio"]
    )
    return [*_clipping(given), muon, step_of_muon, adam, step_of_adam]


@port("keras", _ARGUMENTS | _OF_MUON, _complete_pair, of_each_array)
def muon(
    learning_rate: Any = 0.001, adam_beta_1: Any = 0.9, adam_beta_2: Any = 0.999,
    adam_weight_decay: Any = 0.004, epsilon: Any = 1e-7, weight_decay: Any = 0.004,
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None,
    use_ema: bool = False, ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None, gradient_accumulation_steps: int | None = None,
    name: str | None = None, exclude_layers: Sequence[str] | None = None,
    exclude_embeddings: bool = True, muon_a: float = 3.4445, muon_b: float = -4.7750,
    muon_c: float = 2.0315, adam_lr_ratio: Any = 1, momentum: Any = 0.95, ns_steps: int = 5,
    nesterov: bool = True, rms_rate: Any = 0.2, *, mask: Any = None, storage: Any = None,
) -> Sequence[Rule]:  # fmt: skip
    """`keras.optimizers.Muon`: for arrays with two axes, and Adam for all others.

        μ ← βμ + g,   m = βμ + g with nesterov, else μ,   X₀ = m/(‖m‖ + 1e-7)
        X ← aX + (bXXᵀ + c(XXᵀ)²)X for ns_steps times,   θ ← θ - ηλθ - η·ρ√max(in, out)·X

    For Adam, with a step size ρ'η, are arrays with one axis, none, or more than two, and those left out by
    their paths, "dense_1/kernel"; in Keras these have the model's name in front. `aj.describe(tx, params)`
    says of each array which it is. https://keras.io/api/optimizers/.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.interop.keras.muon(learning_rate=0.01, exclude_layers=["head"])
      >>> layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> rows = aj.describe(tx, {"dense": layer, "head": layer}).rows
      >>> for path, reason in {row.path: row.why[0] for row in rows}.items():
      ...     print(path, reason)
      ['dense']['bias'] label 'rest': one axis
      ['dense']['kernel'] label 'muon': a matrix
      ['head']['bias'] label 'rest': one axis
      ['head']['kernel'] label 'rest': left out by 'head'
    """
    abc = (muon_a, muon_b, muon_c)
    for each, value in zip("abc", abc, strict=True):
        if not isinstance(value, (int, float)):
            raise TypeError(
                f"muon_{each}={value!r} must be a number that is known when the optimizer is made."
            )
    if isinstance(exclude_layers, str):
        raise TypeError(
            f"exclude_layers={exclude_layers!r} must be a list of regular expressions: "
            f"[{exclude_layers!r}]."
        )
    direction = MuonOfSums(momentum, 1e-7, abc, ns_steps, nesterov, rms_rate=rms_rate)
    return [direction, moments((adam_beta_1, adam_beta_2), epsilon, False, eps_hat=True)]

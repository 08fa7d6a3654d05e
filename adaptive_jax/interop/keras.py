"""Keras's optimizers under Keras's names, exact to `keras.optimizers`; its saved runs go on here.

    keras.optimizers.Adam(learning_rate=1e-3, epsilon=1e-6, clipnorm=1.0)
    tx = aj.interop.keras.adam(learning_rate=1e-3, epsilon=1e-6, clipnorm=1.0)

`learning_rate` may be a schedule, a function of the number of steps taken; so may one of Keras's. A
function without arguments, which Keras calls in every step, is refused.
Weight decay is decoupled and multiplied by the learning rate; `mask` does what Keras's method
`exclude_from_weight_decay` does. What is not the optimizer's own arithmetic is refused by name:
`use_ema`, `loss_scale_factor` and `gradient_accumulation_steps`.

`import_state` takes over an optimizer's state, `export_state` hands it back. Neither needs Keras.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._core.hyper import none_if_zero
from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.transform import build
from .._core.transformation import Transformation
from ..rules import clipping, rms, scaling
from ..rules.adagrad import AdaGrad
from ..rules.adam import Adam, AdaMax, AMSGrad, NAdam
from ..rules.momentum import Trace
from . import _state
from ._port import COMMON, DECAY, FRACTION, NON_NEGATIVE, Argument, is_absent, port

_ARGUMENTS = {
    **COMMON,
    "learning_rate": Argument(
        "the step size, >= 0: a number, an array of shape (), or a schedule.", None, NON_NEGATIVE
    ),
    "momentum": Argument("the decay of the velocity, in [0, 1]; 0 for none.", "momentum", FRACTION),
    "nesterov": Argument("whether to use Nesterov's momentum."),
    "initial_accumulator_value": Argument(
        "the first value of the sum of squares, >= 0.", None, NON_NEGATIVE
    ),
    "epsilon": Argument("ε >= 0, against division by zero.", "eps", NON_NEGATIVE),
    "rho": Argument("the decay rate of the moving averages, in [0, 1).", None, DECAY),
    "centered": Argument("whether to divide by the standard deviation."),
    "beta_1": Argument("the decay rate of the first moment, in [0, 1).", "b1", DECAY),
    "beta_2": Argument("the decay rate of the second moment, in [0, 1).", "b2", DECAY),
    "amsgrad": Argument("whether to divide by the largest second moment so far."),
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


_port = port("keras", _ARGUMENTS)


def _optimizer(
    factory: Callable[..., Transformation],
    direction: Rule | None,
    *,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
    storage: Any,
    clips: tuple[Any, Any, Any],
    refused: tuple[Any, Any, Any],
    velocity: Rule | None = None,
    **options: bool,
) -> Transformation:
    """Clipping, a direction, and decoupled weight decay beside a velocity of steps, if there is one."""
    names = ("use_ema", "loss_scale_factor", "gradient_accumulation_steps")
    for name, value in zip(names, refused, strict=True):
        if value:
            remedy = _ARGUMENTS[name].meaning.partition(": ")[2]
            raise ValueError(f"{name}={value!r} is no part of an optimizer here: {remedy}")
    kinds = (clipping.ClipByNorm, clipping.Clip, clipping.ClipByGlobalNorm)
    first: list[Rule] = [
        kind(limit) for kind, limit in zip(kinds, clips, strict=True) if not is_absent(limit)
    ]
    if len(first) > 1:
        raise ValueError(
            "only one of clipnorm, clipvalue and global_clipnorm can be set, got "
            f"clipnorm={clips[0]!r}, clipvalue={clips[1]!r}, global_clipnorm={clips[2]!r}."
        )
    if direction is not None:
        first.append(direction)
    weight_decay = none_if_zero(weight_decay)
    if velocity is None:
        rest = [scaling.LearningRate(learning_rate, weight_decay, mask, keep_count=True)]
    else:
        rest = [scaling.LearningRate(learning_rate, keep_count=True), velocity]
        if weight_decay is not None:
            rest.append(scaling.WeightDecay(weight_decay, mask, learning_rate))
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value}
    return build(factory, *first, *rest, storage=storage, **chosen)


@_port
def sgd(
    learning_rate: Any = 0.01,
    momentum: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.SGD`.

        v ← γv - ηg,   θ ← θ - ηλθ + v      Nesterov: θ - ηλθ + γv - ηg

    https://keras.io/api/optimizers/sgd/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.sgd(momentum=0.9)
      keras.sgd(learning_rate=0.01, momentum=0.9)
    """
    velocity = None if is_absent(momentum) else Trace(momentum, nesterov)
    return _optimizer(
        sgd, None,
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
        velocity=velocity,
    )  # fmt: skip


@_port
def adagrad(
    learning_rate: Any = 0.001,
    initial_accumulator_value: Any = 0.1,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.Adagrad`.

        G ← G + g²,   θ ← θ - ηλθ - ηg/√(G + ε)

    https://keras.io/api/optimizers/adagrad/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adagrad()
      keras.adagrad(learning_rate=0.001, initial_accumulator_value=0.1, epsilon=1e-07)
    """
    return _optimizer(
        adagrad, AdaGrad(initial_accumulator_value, epsilon),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
    )  # fmt: skip


@_port
def adadelta(
    learning_rate: Any = 0.001,
    rho: Any = 0.95,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.Adadelta`.

        E[g²] ← ρE[g²] + (1-ρ)g²,   d = g·√(E[d²] + ε)/√(E[g²] + ε)
        E[d²] ← ρE[d²] + (1-ρ)d²,   θ ← θ - ηλθ - ηd

    https://keras.io/api/optimizers/adadelta/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adadelta()
      keras.adadelta(learning_rate=0.001, rho=0.95, epsilon=1e-07)
    """
    return _optimizer(
        adadelta, rms.AdaDelta(rho, epsilon),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
    )  # fmt: skip


@_port
def rmsprop(
    learning_rate: Any = 0.001,
    rho: Any = 0.9,
    momentum: Any = 0.0,
    epsilon: Any = 1e-7,
    centered: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
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
    velocity = None if is_absent(momentum) else Trace(momentum)
    return _optimizer(
        rmsprop, kind(rho, epsilon),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
        velocity=velocity, centered=centered,
    )  # fmt: skip


def _adam(b1: Any, b2: Any, eps: Any, amsgrad: bool) -> Rule:
    if amsgrad:
        return AMSGrad(b1, b2, eps, maximum_of="raw", eps_hat=True)
    return Adam(b1, b2, eps, eps_hat=True)


@_port
def adam(
    learning_rate: Any = 0.001,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    amsgrad: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.Adam`.

        μ ← β₁μ + (1-β₁)g,   ν ← β₂ν + (1-β₂)g²      amsgrad: the largest ν so far for ν
        θ ← θ - ηλθ - η·√(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√ν + ε)

    https://keras.io/api/optimizers/adam/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adam()
      keras.adam(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return _optimizer(
        adam, _adam(beta_1, beta_2, epsilon, amsgrad),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
        amsgrad=amsgrad,
    )  # fmt: skip


@_port
def adamw(
    learning_rate: Any = 0.001,
    weight_decay: Any = 0.004,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    amsgrad: bool = False,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
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
    return _optimizer(
        adamw, _adam(beta_1, beta_2, epsilon, amsgrad),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
        amsgrad=amsgrad,
    )  # fmt: skip


@_port
def nadam(
    learning_rate: Any = 0.001,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.Nadam`.

        β₁(t) = β₁(1 - ½·0.96ᵗ),   Π(t) = β₁(1)···β₁(t),   μ and ν as in `adam`
        θ ← θ - ηλθ - η·(β₁(t+1)/(1-Π(t+1))·μ + (1-β₁(t))/(1-Π(t))·g)/(√(ν/(1-β₂ᵗ)) + ε)

    https://keras.io/api/optimizers/nadam/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.nadam()
      keras.nadam(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return _optimizer(
        nadam, NAdam(beta_1, beta_2, epsilon, momentum_decay=1.0),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
    )  # fmt: skip


@_port
def adamax(
    learning_rate: Any = 0.001,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """`keras.optimizers.Adamax`.

        μ ← β₁μ + (1-β₁)g,   ν ← max(β₂ν, |g|),   θ ← θ - ηλθ - ημ/((1-β₁ᵗ)(ν + ε))

    https://keras.io/api/optimizers/adamax/.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.interop.keras.adamax()
      keras.adamax(learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07)
    """
    return _optimizer(
        adamax, AdaMax(beta_1, beta_2, epsilon, eps_in_max=False),
        learning_rate=learning_rate, weight_decay=weight_decay, mask=mask, storage=storage,
        clips=(clipnorm, clipvalue, global_clipnorm),
        refused=(use_ema, loss_scale_factor, gradient_accumulation_steps),
    )  # fmt: skip


# ---------------------------------------------------------------------------- saved runs

_ADAM = {"mu": _state.Entry("momentum"), "nu": _state.Entry("velocity")}


_VOCABULARY: _state.Vocabulary = {
    AdaGrad: {"sum_of_squares": _state.Entry("accumulator")},
    rms.AdaDelta: {
        "e_g": _state.Entry("accumulated_grad"),
        "e_x": _state.Entry("accumulated_delta_var"),
    },
    rms.Rms: {"nu": _state.Entry("velocity")},
    rms.StdDev: {"mu": _state.Entry("average_gradient"), "nu": _state.Entry("velocity")},
    Adam: _ADAM,
    AMSGrad: {**_ADAM, "nu_max": _state.Entry("velocity_hat")},
    NAdam: {**_ADAM, "mu_product": _state.Entry("u_product")},
    AdaMax: {"mu": _state.Entry("momentum"), "nu": _state.Entry("norm")},
}


# The order of `optimizer.variables` after `iteration` and `learning_rate`: within a group, every
# parameter's variables in turn; one group after the other.
_GROUPS = {
    "sgd": [("momentum",)],
    "adagrad": [("accumulator",)],
    "adadelta": [("accumulated_grad", "accumulated_delta_var")],
    "rmsprop": [("velocity",), ("momentum",), ("average_gradient",)],
    "adam": [("momentum", "velocity"), ("velocity_hat",)],
    "adamw": [("momentum", "velocity"), ("velocity_hat",)],
    "nadam": [("momentum", "velocity")],
    "adamax": [("momentum", "norm")],
}


def _vocabulary(lifted: Lifted) -> _state.Vocabulary:
    # Keras adds SGD's velocity to the parameters and subtracts RMSprop's. Here both are added.
    sign = 1 if lifted.factory is sgd else -1
    return {**_VOCABULARY, Trace: {"trace": _state.Entry("momentum", sign)}}


def import_state(tx: Any, params: Any, variables: Any, mapping: Any = None) -> Any:
    """The state of a Keras optimizer, as the state of the same optimizer here.

    Keras saves no options with its variables: give tx those of the saved optimizer.

    Args:
      tx: the optimizer of this module that goes on, alone or in an `aj.chain`.
      params: the parameters here.
      variables: `optimizer.variables`, as Keras's variables or as arrays, or the dict that
        `optimizer.save_own_variables` fills.
      mapping: from Keras's names to paths here, or to (path, axes), in the order of
        `model.trainable_variables`. By default the names of the variables decide, or the order, if
        params is a tree whose leaves have one of their own: a list, a tuple, but not a dict.

    Returns:
      The state that `tx.init(params)` has. Every array is a copy.

    Raises:
      TypeError, ValueError: for the variables of another optimizer, missing or further ones, wrong
        shapes, NaN, and parameters that cannot be told apart, by the names of variable and parameter.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> tx = aj.interop.keras.sgd(learning_rate=0.1, momentum=0.9)
      >>> saved = [np.array(3), np.array(0.1), np.ones(2)]  # iteration, learning_rate, momentum
      >>> aj.interop.keras.import_state(tx, [np.zeros(2)], saved)[1]
      TraceState(trace=[Array([1., 1.], dtype=float32)])
    """
    lifted = _state.lifted_of(tx, "keras")
    variables = _listed(variables)
    count = len(jax.tree.leaves(params))
    expected = _expected(lifted, count)
    if len(variables) not in (len(expected) + 1, len(expected) + 2):
        kinds = list(dict.fromkeys(name for name, _ in expected))
        raise ValueError(
            f"{lifted!r} has iteration, learning_rate (but under a schedule) and {kinds} of {count} "
            f"parameters: {len(expected) + 2} variables, got {len(variables)}. They are of another "
            "optimizer or of another model."
        )
    step = _state.number(variables[0], "iteration")
    if step != int(step) or step < 0:
        raise ValueError(f"iteration, the first variable, is {step}: expected a number of steps.")
    rest = list(zip(expected, variables[len(variables) - len(expected) :], strict=True))
    names = _parameter_names(rest, count)
    mapped = _place(params, names, rest, mapping)
    saved = {path: _state.Saved(name) for name, (path, _) in mapped.items()}
    for (kind, index), variable in rest:
        if index is None:
            number = np.asarray(_state.number(variable, kind))
            for one in saved.values():
                one.entries[kind] = number
            continue
        path, axes = mapped[names[index]]
        value = _state.array(variable, f"{kind} of {names[index]}")
        if axes is not None and value.ndim != len(axes):
            raise ValueError(
                f"{kind} of {names[index]} has the shape {value.shape}: the axes are {axes}."
            )
        saved[path].entries[kind] = _state.to_here(value, axes)
    return _state.fill(tx, params, _vocabulary(lifted), "keras", saved, int(step))


def export_state(tx: Any, params: Any, opt_state: Any, mapping: Any = None) -> list[np.ndarray]:
    """The reverse of `import_state`: a value for each of `optimizer.variables`, in their order.

        for variable, value in zip(optimizer.variables, exported, strict=True):
            variable.assign(value)

    Args:
      tx: the optimizer of this module.
      params: the parameters here.
      opt_state: the state to export.
      mapping: from Keras's names to paths here, or to (path, axes), in the order of
        `model.trainable_variables`. It can be left out if params is a tree whose leaves have an order
        of their own.

    Returns:
      Arrays, the learning rate among them unless it is a schedule.

    Raises:
      TypeError, ValueError: for a state of another optimizer, and for a dict of params without a
        mapping: JAX sorts its keys, Keras does not.
    """
    lifted = _state.lifted_of(tx, "keras")
    if mapping is None and not _state.has_own_order(params):
        raise ValueError(
            "params is a dict, whose keys JAX sorts: give the mapping, whose order is that of "
            "model.trainable_variables."
        )
    known = list(_state.paths(params))
    mapped = _state.in_order(params, known)
    if mapping is not None:
        mapped = _state.checked_mapping(mapping, params)
    entries, scalars, count = _state.read(tx, opt_state, params, _vocabulary(lifted), "keras")
    rate = _state.setting(lifted, "learning_rate", None)
    exported = [np.asarray(count, np.int32)]
    exported += [] if callable(rate) else [np.asarray(rate, np.float64)]
    places = list(mapped.values())
    for kind, index in _expected(lifted, len(places)):
        if index is None:
            exported.append(np.asarray(scalars[kind]))
        else:
            path, axes = places[index]
            exported.append(_state.to_there(entries[path][kind], axes))
    return exported


def _listed(variables: Any) -> list[Any]:
    if isinstance(variables, Mapping):
        if set(variables) != {str(index) for index in range(len(variables))}:
            raise ValueError(
                "expected the dict that optimizer.save_own_variables fills, with the keys '0', '1' and "
                f"so on, got {list(variables)[:6]}."
            )
        return [variables[str(index)] for index in range(len(variables))]
    if not isinstance(variables, Sequence) or isinstance(variables, str) or not len(variables):
        raise TypeError(
            f"expected optimizer.variables, a list, got {type(variables).__name__}: {variables!r}."
        )
    return list(variables)


def _expected(lifted: Lifted, count: int) -> list[tuple[str, int | None]]:
    """What the variables after the learning rate are: the entry, and the number of the parameter."""
    slots, scalars = _state.entries_of(lifted, _vocabulary(lifted))
    kept = {entry.name for entry in slots.values()}
    expected: list[tuple[str, int | None]] = []
    for group in _GROUPS[lifted.factory.__name__]:  # type: ignore[union-attr]
        kinds = [kind for kind in group if kind in kept]
        expected += [(kind, index) for index in range(count) for kind in kinds]
    return expected + [(entry.name, None) for entry in scalars.values()]


def _parameter_names(rest: Sequence[tuple[tuple[str, int | None], Any]], count: int) -> list[str]:
    """Keras's name of each parameter, from the names of its variables where they have any."""
    names = [f"parameter {index}" for index in range(count)]
    for (kind, index), variable in rest:
        name = getattr(variable, "name", None)
        if index is None or not isinstance(name, str):
            continue
        if not name.endswith(f"_{kind}"):
            raise ValueError(
                f"variable {name} is in the place of {kind}: the variables are of another optimizer."
            )
        names[index] = name.removesuffix(f"_{kind}")
    return names


def _place(params: Any, names: list[str], rest: Sequence[Any], mapping: Any) -> _state.Mapped:
    """The parameter here of each one of Keras's, by the name that `names` has for it."""
    if mapping is not None:
        mapped = _state.checked_mapping(mapping, params)
        if len(mapped) != len(names):
            raise ValueError(f"mapping has {len(mapped)} parameters, {len(names)} were saved.")
        return dict(zip(names, mapped.values(), strict=True))
    if _state.has_own_order(params) or not any(index is not None for (_, index), _ in rest):
        return _state.in_order(params, names)
    # A path such as dense/kernel is the name dense_kernel, with the model's name in front of it.
    joined = {path: re.sub(r"\W+", "_", path).lower() for path in _state.paths(params)}
    ends = {
        name: [p for p, each in joined.items() if f"_{name.lower()}".endswith(f"_{each}")]
        for name in names
    }
    chosen = [max(found, key=lambda path: len(joined[path])) for found in ends.values() if found]
    if len(set(chosen)) == len(names):
        return {name: (path, None) for name, path in zip(names, chosen, strict=True)}
    shapes: dict[str, Any] = {
        names[index]: tuple(variable.shape) for (_, index), variable in rest if index is not None
    }
    return _state.match(params, shapes, transposes=False)

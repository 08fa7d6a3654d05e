"""The gradients of a step where the user says how they are made of those of the loss."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._core import errors, pytrees
from .._core.lifted import Lifted
from .._core.transformation import Foreign
from .._core.wrapper import walk
from .gradients import Evaluated, update_dtype, value_and_grad
from .loss import check_one_number, check_same_shapes
from .returned import outlined
from .settings import Settings
from .state import TrainState

_ARGUMENTS = "(value_and_grad, params, batch, step, key)"
_OWN = ("value", "grad", "value_fn")
_KEY = 2**32 - 1  # The parts of a batch have keys by their numbers, which do not reach it.


def check_estimator(gradient: Any) -> None:
    """Raises a TypeError for what cannot be called as `train_step` calls its argument `gradient`."""
    if gradient is None:
        return
    if isinstance(gradient, type):
        name = gradient.__name__
        raise TypeError(f"gradient={name} is a class: give one of it, gradient={name}(…).")
    if not callable(gradient):
        raise TypeError(f"gradient={gradient!r:.200} must be a function of {_ARGUMENTS}.")
    try:
        inspect.signature(gradient).bind(*range(5))
    except ValueError:  # Python does not know its arguments.
        return
    except TypeError as error:
        raise TypeError(
            f"{_named(gradient)} must be a function of {_ARGUMENTS}: {error}."
        ) from None


def estimated(
    settings: Settings,
    state: TrainState,
    batch: Any,
    rng: Any,
    scale: jax.Array,
    at_home: Callable[[Any], Any],
) -> tuple[Evaluated, Any, Mapping[str, Any]]:
    """What the loss gave, its gradients as JAX gives them, and extra arguments for the optimizer.

    By the estimator of the settings; without one, those of the batch, and no extra arguments.

    at_home: puts gradients where the parameters lie.
    """

    def of(params: Any, given: Any = batch) -> tuple[Evaluated, Any]:
        parts = settings.accumulate if given is batch else 1
        return value_and_grad(settings, state, params, given, rng, scale, parts, at_home)

    estimator = settings.gradient
    if estimator is None:
        return *of(state.params), {}
    name, key = _named(estimator), None
    if state.rng is not None:
        key = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), _KEY)
    try:
        with errors.of_function(name, "the step, or another number, which"):
            result = estimator(of, state.params, batch, state.step, key)
    except TypeError as error:
        if key is None and "PRNG key type <class 'NoneType'>" in str(error):
            raise ValueError(
                f"{name} takes key, and the state has none: make it with TrainState.create(params, tx, "
                "rng=jax.random.key(0))."
            ) from error
        raise
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(
            f"{name} must return (first, gradients, extra_args), of which first is what value_and_grad "
            f"returned first, and extra_args a dict, which may be empty; it returned {outlined(result)}."
        )
    first, gradients, extra_args = result
    extra_args = _checked_extra_args(name, extra_args)
    _warn_of_dropped(settings, name, extra_args, state)
    return (
        _checked_first(name, first, state),
        _checked_gradients(name, gradients, state),
        extra_args,
    )


def _warn_of_dropped(
    settings: Settings, name: str, extra_args: Mapping[str, Any], state: TrainState
) -> None:
    """Says once which extra arguments no part of the optimizer takes."""
    taken: set[str] = set()
    for (data,) in walk(state.tx):
        if isinstance(data, Lifted):
            taken |= {each for rule in data.rules for each in rule.extra_args}
        elif isinstance(data, Foreign) and (names := data.takes) is not None:
            taken |= {*names}
        else:  # It may take any.
            return
    dropped = [each for each in extra_args if each.removeprefix("has_") not in taken]
    if dropped and "extra_args" not in settings.told:
        settings.told.append("extra_args")
        warnings.warn(
            f"{name} makes {', '.join(dropped)} for the optimizer, and nothing in {state.tx!r:.200} takes "
            f"{'it' if len(dropped) == 1 else 'them'}: leave out what is not needed, which costs time, or "
            "take an optimizer with a rule that has it among its extra_args, such as aj.sophia and "
            "aj.adahessian for hessian_diagonal.",
            stacklevel=2,
        )


def numbers_of(extra_args: Mapping[str, Any]) -> list[jax.Array]:
    """All arrays among extra arguments."""
    return [x for x in jax.tree.leaves(dict(extra_args)) if isinstance(x, jax.Array)]


def _named(estimator: Any) -> str:
    """How an error calls an estimator: as the argument that it is."""
    return f"gradient={getattr(estimator, '__name__', None) or f'{estimator!r:.80}'}"


def _checked_first(name: str, first: Any, state: TrainState) -> Evaluated:
    if not isinstance(first, Evaluated):
        raise TypeError(
            f"{name} must return first what value_and_grad returned first, or the mean of several such, "
            f"jax.tree.map(lambda x: x.mean(0), first); it returned {outlined(first)}."
        )
    check_one_number(f"the loss that {name} returned", first.loss)
    what = f"the model state that {name} returned"
    check_same_shapes(what, first.model_state, "the model state", state.model_state)
    return first


def _checked_gradients(name: str, gradients: Any, state: TrainState) -> Any:
    """The gradients in the dtypes of those of the loss."""
    pytrees.Arrays("params", state.params).match(f"the gradients that {name} returned", gradients)
    arrays = pytrees.Arrays(f"gradients that {name} returned", gradients)
    params = arrays.params(state.params, ())
    return arrays.treedef.unflatten(
        [
            None if g is None else jnp.asarray(g, update_dtype(jnp.result_type(x)))
            for g, x in zip(arrays.leaves, params, strict=True)
        ]
    )


def _checked_extra_args(name: str, extra_args: Any) -> Mapping[str, Any]:
    if not isinstance(extra_args, Mapping) or not all(isinstance(x, str) for x in extra_args):
        raise TypeError(
            f"{name} must return at the end a dict of extra arguments for the optimizer's update, by "
            f"their names, or an empty one; it returned {outlined(extra_args)}."
        )
    if taken := [each for each in _OWN if each in extra_args]:
        raise ValueError(
            f"{name} returned the extra argument {taken[0]!r}, and train_step itself hands on "
            f"{', '.join(_OWN)}: value is the loss in what it returns first, grad its gradients. Give "
            "yours another name."
        )
    return extra_args

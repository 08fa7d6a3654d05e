"""What the ports share: arguments under the names of the other library, checked and documented."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from .._core import hyper
from .._core.arguments import one_of
from .._core.documentation import documented
from .._core.hyper import none_if_zero

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


NON_NEGATIVE = hyper.Interval(0.0)


FRACTION = hyper.Interval(0.0, 1.0)


DECAY = hyper.Interval(0.0, 1.0, open_above=True)


@dataclass(frozen=True)
class Argument:
    """An argument: what it means, the field of a rule that holds it, and the values it may have.

    field: the name if None; a tuple for an argument that is one; "Rule.name" to be specific.
    """

    meaning: str
    field: str | tuple[str, ...] | None = None
    interval: hyper.Interval | None = None


COMMON = {
    "mask": Argument("which arrays decay, as in the optimizers of this library; None for all."),
    "storage": Argument("how the slots are kept, as in the optimizers of this library."),
}


def port(library: str, arguments: Mapping[str, Argument]) -> Callable[[_Factory], _Factory]:
    """A decorator that checks the arguments of an optimizer under the other library's names."""

    def decorate(factory: _Factory) -> _Factory:
        signature = inspect.signature(factory)
        label = f"{library}.{factory.__name__}"

        @functools.wraps(factory)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{label}: {error}. It takes {', '.join(signature.parameters)}, and no parameters "
                    "of a model."
                ) from None
            given.apply_defaults()
            for name, value in given.arguments.items():
                argument, parameter = arguments[name], signature.parameters[name]
                if argument.interval is not None:
                    value = given.arguments[name] = plain(value, argument)
                _check_argument(label, name, value, argument, parameter)
            return factory(*given.args, **given.kwargs)

        checked.label = label  # type: ignore[attr-defined]
        checked.fields = {  # type: ignore[attr-defined]
            name: arguments[name].field or name for name in signature.parameters
        }
        meanings = {name: argument.meaning for name, argument in arguments.items()}
        return documented(meanings)(checked)  # type: ignore[return-value]

    return decorate


def plain(value: Any, argument: Argument | None = None) -> Any:
    """A hyperparameter without the types of the other library, and a pair of them as a tuple.

    PyTorch takes a tensor of one element, of whatever shape, for a number; Keras takes a variable.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(plain(each) for each in value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.item() if value.numel() == 1 else np.asarray(value.tolist())
    elif type(value).__module__.partition(".")[0] == "keras" and hasattr(value, "assign"):
        value = np.asarray(value.value)
    is_pair = argument is not None and isinstance(argument.field, tuple)
    if is_pair and isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 1:
        return tuple(value)
    return value


def _check_argument(
    label: str, name: str, value: Any, argument: Argument, parameter: inspect.Parameter
) -> None:
    if argument.interval is None:
        if isinstance(parameter.default, bool):
            one_of(name, value, (False, True))
        return
    if isinstance(argument.field, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(argument.field):
            raise TypeError(
                f"{name}={value!r} is out of place in {label}: it must be {len(argument.field)} numbers."
            )
        for index, each in enumerate(value):
            _check_schedule(label, f"{name}[{index}]", each)
            hyper.hyperparameter(label, f"{name}[{index}]", each, argument.interval)
    elif value is None and parameter.default is not None:
        raise TypeError(f"{name}=None is out of place in {label}: it must be {argument.interval}.")
    else:
        _check_schedule(label, name, value)
        hyper.hyperparameter(label, name, value, argument.interval)


def _check_schedule(label: str, name: str, value: Any) -> None:
    """Raises a TypeError for a function that takes no count: Keras calls those as well."""
    if not callable(value):
        return
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        raise TypeError(
            f"{name}={getattr(value, '__name__', value)} in {label} cannot be called with the number of "
            "steps taken, as a schedule is: write lambda count: …. What a function without arguments "
            "returns would be compiled into the step, once and for all; to change a number from outside, "
            f"make the optimizer anew, state.replace(tx={label}({name.partition('[')[0]}=…))."
        ) from None
    except ValueError:  # A function of C has no signature.
        return


def is_absent(value: Any) -> bool:
    """Whether an option is None or the number 0, and so without effect."""
    return none_if_zero(value) is None

"""What the ports share: arguments under the names of the other library, checked and documented."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import _check
from .._documentation import documented
from .._rule import none_if_zero

_Factory = TypeVar("_Factory", bound=Callable[..., Any])

NON_NEGATIVE = _check.Interval(0.0)
FRACTION = _check.Interval(0.0, 1.0)
DECAY = _check.Interval(0.0, 1.0, open_above=True)


@dataclass(frozen=True)
class Argument:
    """An argument: what it means, the field of a rule that holds it, and the values it may have.

    field: the name if None; a tuple for an argument that is one; "Rule.name" to be specific.
    """

    meaning: str
    field: str | tuple[str, ...] | None = None
    interval: _check.Interval | None = None


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
                _check_argument(label, name, value, arguments[name], signature.parameters[name])
            return factory(*args, **kwargs)

        checked.label = label  # type: ignore[attr-defined]
        checked.fields = {  # type: ignore[attr-defined]
            name: arguments[name].field or name for name in signature.parameters
        }
        meanings = {name: argument.meaning for name, argument in arguments.items()}
        return documented(meanings)(checked)  # type: ignore[return-value]

    return decorate


def _check_argument(
    label: str, name: str, value: Any, argument: Argument, parameter: inspect.Parameter
) -> None:
    if argument.interval is None:
        if isinstance(parameter.default, bool):
            _check.one_of(name, value, (False, True))
        return
    if isinstance(argument.field, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(argument.field):
            raise TypeError(
                f"{name}={value!r} is out of place in {label}: it must be {len(argument.field)} numbers."
            )
        for index, each in enumerate(value):
            _check.hyperparameter(label, f"{name}[{index}]", each, argument.interval)
    elif value is None and parameter.default is not None:
        raise TypeError(f"{name}=None is out of place in {label}: it must be {argument.interval}.")
    else:
        _check.hyperparameter(label, name, value, argument.interval)


def is_absent(value: Any) -> bool:
    """Whether an option is None or the number 0, and so without effect."""
    return none_if_zero(value) is None

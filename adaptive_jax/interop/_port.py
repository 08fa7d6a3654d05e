"""Optimizers under another library's names: arguments checked and documented, rules put together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import jax
import numpy as np

from .._core import hyper
from .._core.arguments import one_of
from .._core.documentation import documented
from .._core.hyper import none_if_zero
from .._core.rule import Rule
from .._core.transform import build
from .._core.transformation import Transformation

_Parameters = ParamSpec("_Parameters")


NON_NEGATIVE = hyper.Interval(0.0)


FRACTION = hyper.Interval(0.0, 1.0)


DECAY = hyper.Interval(0.0, 1.0, open_above=True)


NON_POSITIVE = hyper.Interval(high=0.0, open_below=True)


POSITIVE = hyper.Interval(0.0, open_below=True)


SHARE = hyper.Interval(0.0, 1.0, open_below=True)


LIMIT = hyper.Interval(0.0, finite=False)


@dataclass(frozen=True)
class Argument:
    """An argument: what it means, the field of a rule that holds it, and the values it may have.

    field: the name if None; a tuple for an argument that is one; "Rule.name" to be specific.
    is_option: whether it chooses among rules, so that no rule has it as a field.
    is_optional: whether it may be None, although that is not its default.
    """

    meaning: str
    field: str | tuple[str, ...] | None = None
    interval: hyper.Interval | None = None
    is_option: bool = False
    is_optional: bool = False


LEARNING_RATE = Argument(
    "the step size, >= 0: a number, an array of shape (), or a schedule.",
    "learning_rate",
    NON_NEGATIVE,
)


COMMON = {
    "momentum": Argument("the decay of the velocity, in [0, 1]; 0 for none.", "momentum", FRACTION),
    "nesterov": Argument("whether to use Nesterov's momentum."),
    "initial_accumulator_value": Argument(
        "the first value of the sum of squares, >= 0.", None, NON_NEGATIVE
    ),
    "centered": Argument("whether to divide by the standard deviation.", is_option=True),
    "amsgrad": Argument("whether to divide by the largest second moment so far.", is_option=True),
    "mask": Argument("which arrays decay, as in the optimizers of this library; None for all."),
    "storage": Argument("how the slots are kept, as in the optimizers of this library."),
}


def in_a_row(
    optimizer: Callable[..., Any],
    rules: Sequence[Rule],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Transformation:
    """The transformation of rules for all arrays."""
    return build(optimizer, *rules, storage=given["storage"], **options)


def port(
    library: str,
    arguments: Mapping[str, Argument],
    complete: Callable[[Sequence[Rule], Mapping[str, Any]], Sequence[Rule]],
    made: Callable[..., Transformation] = in_a_row,
) -> Callable[[Callable[_Parameters, Sequence[Rule]]], Callable[_Parameters, Transformation]]:
    """A decorator that makes an optimizer of the function that gives the rules of its direction.

    Its arguments are checked under the other library's names. `complete` puts before and after the
    direction what the other library does in all its optimizers, given their arguments by name. `made`
    makes the transformation of the optimizer, of these rules, the arguments, and those that choose.
    """

    def decorate(
        directions: Callable[_Parameters, Sequence[Rule]],
    ) -> Callable[_Parameters, Transformation]:
        signature = inspect.signature(directions).replace(return_annotation=Transformation)
        label = f"{library}.{directions.__name__}"

        @functools.wraps(directions)
        def optimizer(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Transformation:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{label}: {error}. It takes {', '.join(signature.parameters)}, and no parameters "
                    "of a model."
                ) from None
            given.apply_defaults()
            values = given.arguments
            for name, value in values.items():
                argument, parameter = arguments[name], signature.parameters[name]
                if argument.interval is not None:
                    value = values[name] = plain(value, argument)
                _check_argument(label, name, value, argument, parameter)
            rules = complete(directions(*given.args, **given.kwargs), values)
            options: dict[str, Any] = {
                name: values[name] if isinstance(values[name], str) else True
                for name in values
                if arguments[name].is_option and values[name]
            }
            return made(optimizer, rules, values, options)

        fields = {name: arguments[name].field or name for name in signature.parameters}
        vars(optimizer).update(label=label, fields=fields, __signature__=signature)
        optimizer.__annotations__ = {**directions.__annotations__, "return": Transformation}
        return documented({name: each.meaning for name, each in arguments.items()})(optimizer)

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
    elif value is None and parameter.default is not None and not argument.is_optional:
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

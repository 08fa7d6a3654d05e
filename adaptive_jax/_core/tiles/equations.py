"""A function as the list of its operations, to look through and to do in two parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Operations that do no more than call a function, and the parameter that it is in."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is in the function itself."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return np.shape(self.value)


class Variable(NamedTuple):
    """A value that is computed, or an argument. Two are the same only with one number."""

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Operation(NamedTuple):
    """One operation of JAX."""

    primitive: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Variable, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Equations:
    """A function from arrays to arrays, with all that it calls written out.

    arguments: its arguments in order.
    operations: in an order in which they can be done.
    results: what it returns, `Variable`s and `Constant`s.
    """

    arguments: tuple[Variable, ...]
    operations: tuple[Operation, ...]
    results: tuple[Any, ...]

    @classmethod
    def of(cls, platform: str, function: Callable[..., Any], *arguments: Any) -> Equations:
        """Those of a function of pytrees of arrays, or of what only has their shapes and dtypes.

        platform: for which they are, where it does different things on different ones.
        """
        closed = jax.make_jaxpr(function)(*arguments)
        numbers = itertools.count()
        outer = [_variable(numbers, each) for each in closed.jaxpr.invars]
        operations: list[Operation] = []
        results = _written_out(closed, outer, numbers, platform, operations)
        return cls(tuple(outer), tuple(operations), tuple(results))

    def halves(self) -> tuple[list[Operation], list[Operation], list[Variable]]:
        """What is better done before and once, the rest, and the numbers that the rest needs.

        The first are the operations whose results are numbers with a point, which some compilers of
        kernels hardly know outside of arrays, and all that they need. Integers are left to the rest:
        they are keys for random bits, a few operations, of which each array has its own.
        """
        numbers = {each for each in self.arguments if each.shape == ()}
        of_numbers = []
        for operation in self.operations:
            inputs = [x for x in operation.inputs if isinstance(x, Variable)]
            if numbers.issuperset(inputs) and not any(x.shape for x in operation.outputs):
                numbers.update(operation.outputs)
                of_numbers.append(operation)
        first: set[Variable] = set()  # What is computed before.
        for operation in reversed(of_numbers):
            is_float = any(jnp.issubdtype(x.dtype, jnp.floating) for x in operation.outputs)
            if is_float or not first.isdisjoint(operation.outputs):
                first.update(operation.outputs)
                first.update(x for x in operation.inputs if isinstance(x, Variable))
        before = [each for each in of_numbers if each.outputs[0] in first]
        rest = [each for each in self.operations if each.outputs[0] not in first]
        known = {x for x in self.arguments if x.shape == ()}.union(*(x.outputs for x in before))
        used = {x: None for each in rest for x in each.inputs if x in known}
        return before, rest, list(used)


def done(operation: Operation, *inputs: Any) -> Any:
    """What an operation gives."""
    return operation.primitive.bind(*inputs, **operation.parameters)


def evaluate(
    operations: Sequence[Operation], known: dict[Variable, Any], do: Callable[..., Any] = done
) -> None:
    """Does the operations, with values that are known, and adds what they give.

    do: does one operation.
    """
    for operation in operations:
        inputs = [value_of(known, each) for each in operation.inputs]
        given = do(operation, *inputs)
        outputs = given if operation.primitive.multiple_results else [given]
        known.update(zip(operation.outputs, outputs, strict=True))


def value_of(known: Mapping[Variable, Any], each: Any) -> Any:
    """The value of a variable or a constant."""
    return each.value if isinstance(each, Constant) else known[each]


def _written_out(
    closed: Any,
    arguments: Sequence[Any],
    numbers: Iterator[int],
    platform: str,
    into: list[Operation],
) -> list[Any]:
    """Adds the operations of a jaxpr, with these arguments, to a list. Returns its results."""
    from jax.extend.core import Literal  # It brings Pallas along, which takes time at import.

    jaxpr = closed.jaxpr if hasattr(closed, "jaxpr") else closed
    known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    consts = map(Constant, getattr(closed, "consts", ()))
    known.update(zip(jaxpr.constvars, consts, strict=True))

    def known_as(each: Any) -> Any:
        return Constant(each.val) if isinstance(each, Literal) else known[each]

    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            continue
        inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
        invars = equation.invars
        if (platforms := equation.params.get("branches_platforms")) is not None:
            found = [each is None or platform in each for each in platforms].index(True)
            inner, invars = equation.params["branches"][found], invars[1:]
        inputs = [known_as(each) for each in invars]
        if inner is not None:
            outputs = _written_out(inner, inputs, numbers, platform, into)
        else:
            outputs = [_variable(numbers, each) for each in equation.outvars]
            operation = equation.primitive, tuple(inputs), tuple(outputs), equation.params
            into.append(Operation(*operation))
        known.update(zip(equation.outvars, outputs, strict=True))
    return [known_as(each) for each in jaxpr.outvars]


def _variable(numbers: Iterator[int], each: Any) -> Variable:
    return Variable(next(numbers), tuple(each.aval.shape), each.aval.dtype)

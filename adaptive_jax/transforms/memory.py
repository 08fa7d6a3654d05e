"""What the state of an optimizer takes, and what in it is like the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from .._core import pytrees
from .._core.storage import blocks, factored
from .._core.transformation import member
from .parts import parts


@dataclass(frozen=True)
class StateBytes:
    """How many bytes an optimizer's state takes; `print` shows it as a table.

    total: all of it.
    parameters: how many numbers the parameters are.
    by_slot: of each slot. What is no slot, such as counts, is "other".
    by_array: of each array of the parameters, by its path.
    """

    total: int
    parameters: int
    by_slot: dict[str, int]
    by_array: dict[str, int]

    @property
    def per_parameter(self) -> float:
        """Bytes per parameter."""
        return self.total / max(1, self.parameters)

    def __str__(self) -> str:
        rows = [("slot", *_row(each)) for each in self.by_slot.items()]
        largest = sorted(self.by_array.items(), key=lambda item: -item[1])
        rows += [("array", *_row(each)) for each in largest[:_SHOWN]]
        if len(largest) > _SHOWN:
            rest = sum(size for _, size in largest[_SHOWN:])
            rows.append(("array", f"{len(largest) - _SHOWN} more", f"{rest:,}"))
        rows.append(("total", f"{self.per_parameter:.4g} bytes per parameter", f"{self.total:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{kind:<{widths[0]}}  {name:<{widths[1]}}  {size:>{widths[2]}}"
            for kind, name, size in rows
        )


_SHOWN = 10


def _row(item: tuple[str, int]) -> tuple[str, str]:
    return item[0], f"{item[1]:,}"


def state_bytes(tx: optax.GradientTransformation, params: Any) -> StateBytes:
    """How many bytes the state of an optimizer takes, before anything of it is allocated.

    Args:
      tx: the optimizer. Slots are found in those of this library, in its chains and wrappers; the
        state of anything else counts as "other".
      params: the parameters, as arrays or as shapes (`jax.eval_shape`, `jax.ShapeDtypeStruct`).

    Raises:
      TypeError: for what is no optimizer, and parameters that are no arrays, by their path.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> params = {"w": jax.ShapeDtypeStruct((8192, 1024), jnp.float32)}
      >>> print(aj.state_bytes(aj.adam(1e-3, storage={"mu": "int8", "nu": "int16"}), params))
      slot   mu                          8,519,680
      slot   nu                         16,908,288
      slot   other                               4
      array  ['w']                      25,427,968
      total  3.031 bytes per parameter  25,427,972
    """
    arrays = pytrees.Arrays("params", params)
    state = jax.eval_shape(member(tx, "state_bytes").init, params)
    by_slot: dict[str, int] = {}
    by_array = dict.fromkeys(arrays.paths(), 0)

    for rule, _, part, seen in parts(tx, state, params):
        of_rule = pytrees.Arrays("params", seen)
        for name in rule.slots:
            sizes = [nbytes(each) for each in of_rule.treedef.flatten_up_to(getattr(part, name))]
            by_slot[name] = by_slot.get(name, 0) + sum(sizes)
            for path, size in zip(of_rule.paths(), sizes, strict=True):
                by_array[path] += size
    total = nbytes(state)
    if other := total - sum(by_slot.values()):
        by_slot["other"] = other
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return StateBytes(total, parameters, by_slot, by_array)


def nbytes(tree: Any) -> int:
    """How many bytes the arrays of a tree are."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def map_params(
    tx: optax.GradientTransformation,
    function: Callable[..., Any],
    opt_state: Any,
    /,
    *rest: Any,
    transform_non_params: Callable[[Any], Any] | None = None,
) -> Any:
    """A function of every array of a state that is like a parameter: its sharding, for instance.

    Differs from `optax.tree.map_params`, which knows no storage: there, and in `compensate` with some
    parameters of 32 bits, what is kept for an array is no leaf, and a tree of shardings does not fit.

    Args:
      tx: the optimizer, of this library, of optax, or of both.
      function: called with each slot and what the trees of rest have for its parameter; where the slot
        is kept as codes, with these.
      opt_state: its state, as arrays or as shapes.
      *rest: trees like the parameters.
      transform_non_params: called with every other array: counts, scales, the factors of a matrix, and
        what is measured. None to leave them as they are.

    Returns:
      The state with what the functions returned in the places of its arrays.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> params, specs = {"w": jnp.ones((64, 128))}, {"w": PartitionSpec("x", None)}
      >>> tx = aj.adam(1e-3, storage="int8")
      >>> spec = lambda slot, spec: spec
      >>> rest = lambda x: PartitionSpec()
      >>> shardings = aj.map_params(tx, spec, tx.init(params), specs, transform_non_params=rest)
      >>> print(shardings[0].mu["w"])
      Quantized(codes=P('x', None), scales=P())
    """

    def other(tree: Any) -> Any:
        return tree if transform_non_params is None else jax.tree.map(transform_non_params, tree)

    def of_array(kept: Any, *rest: Any) -> Any:
        if hasattr(kept, "dtype"):
            return function(kept, *rest)
        if not isinstance(kept, blocks.Quantized):
            return other(kept)
        return blocks.Quantized(function(kept.codes, *rest), other(kept.scales))

    def is_kept(x: Any) -> bool:
        return isinstance(x, (blocks.Quantized, factored.Factors, optax.MaskedNode))

    return optax.tree.map_params(
        member(tx, "map_params"),
        of_array,
        opt_state,
        *rest,
        transform_non_params=other,
        is_leaf=is_kept,
    )


class Static:
    """A tree of shapes that hashes."""

    def __init__(self, tree: Any) -> None:
        self.leaves, self.treedef = jax.tree.flatten(tree)
        self._key = (tuple((x.shape, x.dtype) for x in self.leaves), self.treedef)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

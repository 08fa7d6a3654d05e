"""A function of arrays of one shape, done by each device with its own part of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .kernel import Operand


class OnEachDevice:
    """A function of the parts that one device has of its operands, as one of the whole operands.

    Nothing is sent, unless operands are split in different ways, or a block lies across devices.

    function: of the places along each axis, and of the operands; the results in a tuple.
    shape: of the arrays.
    leading: the operand that says how all are split.
    """

    def __init__(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        shape: tuple[int, ...],
        inputs: Sequence[Operand],
        outputs: Sequence[Operand],
        leading: int,
    ) -> None:
        self._function, self._shape, self._leading = function, shape, leading
        self._inputs, self._outputs = inputs, outputs

    def __call__(self, *operands: Any) -> tuple[jax.Array, ...]:
        """The results."""
        # The steps in the whole array from its first element.
        places = [
            jnp.arange(size, dtype=jnp.uint32)
            * np.uint32(math.prod(self._shape[axis + 1 :]) % 2**32)
            for axis, size in enumerate(self._shape)
        ]
        sharding = jax.typeof(operands[self._leading]).sharding
        if set(kinds := sharding.mesh.axis_types) == {AxisType.Manual}:  # Within a `shard_map`.
            return self._function(*places, *operands)
        if AxisType.Explicit in kinds:
            specs, split = self._specs(sharding.spec, sharding.mesh)
            operands = tuple(
                jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))
                for x, spec in zip((*places, *operands), specs, strict=True)
            )
            results = (split,) * len(self._outputs)
            return jax.shard_map(
                self._function,
                mesh=sharding.mesh,
                in_specs=specs,
                out_specs=results,
                check_vma=False,
            )(*operands)
        call = custom_partitioning(self._function)
        call.def_partition(partition=self._partition, sharding_rule=self._rule())
        return call(*places, *operands)

    def _specs(
        self, leading: Sequence[Any], mesh: Any
    ) -> tuple[tuple[PartitionSpec, ...], PartitionSpec]:
        """How places and operands are split, and how results are."""
        spec = (*leading, *[None] * len(self._shape))[: len(self._shape)]
        split = []
        for axis, (size, names) in enumerate(zip(self._shape, spec, strict=True)):
            names = names if isinstance(names, tuple) else (names,) if names else ()
            parts = math.prod(mesh.shape[name] for name in names)
            is_last = axis == len(self._shape) - 1
            whole = [each.per for each in self._inputs if each.per] if is_last else [1]
            split.append(None if any(size % (parts * each) for each in whole) else names or None)
        result = PartitionSpec(*split)
        of_operands = (result if each.per else PartitionSpec() for each in self._inputs)
        return (*map(PartitionSpec, split), *of_operands), result

    def _partition(self, mesh: Any, operands: Any, results: Any) -> Any:
        """What `custom_partitioning` asks for: how all are split, and what each device does."""
        del results
        leading = operands[len(self._shape) + self._leading].sharding.spec
        specs, split = self._specs(leading, mesh)
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        return mesh, self._function, (NamedSharding(mesh, split),) * len(self._outputs), shardings

    def _rule(self) -> str:
        """Which axes are split alike, as Shardy reads it."""
        axes = [f"d{axis}" for axis in range(len(self._shape))]

        def row(operands: Sequence[Operand]) -> list[str]:
            last = {0: [], 1: axes}
            return [" ".join(last.get(each.per, [*axes[:-1], f"b{each.per}"])) for each in operands]

        return f"{', '.join([*axes, *row(self._inputs)])} -> {', '.join(row(self._outputs))}"

"""What is different where several processes train together: each runs the same program on its devices."""

from __future__ import annotations

import functools
import itertools
import signal
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from .._core.placement import is_key
from .interrupts import Interrupts


def on_this_host(values: list[Any]) -> list[Any]:
    """Values of which this process can have all numbers: arrays divided among several are copied.

    By one program, and on CPUs before anything else starts: there XLA runs programs side by side, and two
    that talk to other processes may each wait for the one that has not started there, for ever.
    """
    divided = [place for place, x in enumerate(values) if _is_divided(x)]
    if not divided:
        return values
    arrays = [values[place] for place in divided]
    copies = _gather(tuple(x.sharding for x in arrays))(*arrays)
    if jax.default_backend() == "cpu":
        jax.block_until_ready(copies)
    found = dict(zip(divided, copies, strict=True))
    return [found.get(place, x) for place, x in enumerate(values)]


def _is_divided(x: Any) -> bool:
    """Whether it is an array of which other processes have a part that this one has not."""
    is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    return is_array and not (x.is_fully_addressable or x.is_fully_replicated)


@functools.cache
def _gather(shardings: tuple[Any, ...]) -> Any:
    whole = tuple(NamedSharding(sharding.mesh, PartitionSpec()) for sharding in shardings)
    return jax.jit(lambda *arrays: arrays, out_shardings=whole)


def apart(tree: Any) -> Any:
    """A tree whose arrays are on one device: for runs on single devices, which know of no mesh."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(map(_on_one_device, on_this_host(leaves)))


def _on_one_device(x: Any) -> Any:
    is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    if not is_array or not isinstance(x.sharding, NamedSharding):
        return x
    if is_key(x):
        data = _on_one_device(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if not x.is_fully_replicated:
        # Not onto the one device: on an explicit mesh the array's type would say still that it is divided.
        x = jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))
    return x.addressable_data(0)


_sync_points = itertools.count()
"""Numbers for the steps of all loops: the service remembers the one to stop at, and sees none twice."""


class Stops:
    """Whether a loop is to end, at the same step in all processes.

    Ctrl-C in one process ends the loop of all, as does a cluster that is about to take a machine away:
    JAX's coordination service agrees on the step.

    are_together: whether the processes train together, not each for itself.
    """

    def __init__(self, interrupts: Interrupts, are_together: bool) -> None:
        self._interrupts, self._are_together = interrupts, are_together
        self._has_told = self.stopped = False

    def after_step(self) -> bool:
        """Whether to stop, before the first step and after each one."""
        if not self._are_together:
            self.stopped = self._interrupts.count > 0
            return self.stopped
        from jax.experimental import multihost_utils

        if self._interrupts.count and not self._has_told:
            self._has_told = True
            # The coordination service takes it for a preemption.
            signal.raise_signal(signal.SIGTERM)
        self.stopped = multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return self.stopped

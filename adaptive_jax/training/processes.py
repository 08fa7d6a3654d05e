"""What is different where several processes train together: each runs the same program on its devices."""

from __future__ import annotations

import functools
import signal
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from .arrays import is_key
from .interrupts import Interrupts


def put(x: Any, sharding: Any) -> Any:
    """An array on the devices of a sharding, of which some may be those of other processes."""
    if not is_key(x):
        return jax.device_put(x, sharding)
    data = jax.device_put(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))


def on_this_host(x: Any) -> Any:
    """An array of which this process can have all numbers: one that is divided among several is copied."""
    is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    if not is_array or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return _gather(x.sharding)(x)


@functools.cache
def _gather(sharding: Any) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))


class Stops:
    """Whether a loop is to end, at the same step in all processes.

    Ctrl-C in one process ends the loop of all, as does a cluster that is about to take a machine away:
    JAX's coordination service agrees on the step.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts, self._has_told = interrupts, False
        self.stopped = False

    def after(self, step: int) -> bool:
        """Whether to stop after so many steps."""
        if jax.process_count() == 1:
            self.stopped = self._interrupts.count > 0
            return self.stopped
        from jax.experimental import multihost_utils

        if self._interrupts.count and not self._has_told:
            self._has_told = True
            signal.raise_signal(
                signal.SIGTERM
            )  # The coordination service takes it for a preemption.
        self.stopped = multihost_utils.reached_preemption_sync_point(step)
        return self.stopped

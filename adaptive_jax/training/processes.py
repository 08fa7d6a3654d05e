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

"""Whether a run has stopped because nothing in it was finite, known without waiting for the device."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..transforms.skip import raise_if_stopped, skips_in
from .processes import on_this_host

EVERY = 32
"""After so many steps it is looked at, and as many later, when that has arrived, it is judged."""


class Stopped:
    """What each `skip_nonfinite` in a loop's state says: whether it has stopped.

    A state from then on is as it was then but for its counts, so it may be noticed late.
    """

    def __init__(self, state: Any) -> None:
        self._is_there = any(skips_in(_of(state)))
        self._sent: list[Any] = []

    def after_step(self, done: int, state: Any) -> None:
        """Raises a FloatingPointError if it had stopped so many steps ago."""
        if not self._is_there or done % EVERY:
            return
        if _is_over(self._sent):
            raise_if_stopped(_of(state))
        # Copies: the next step writes over its state.
        self._sent = on_this_host([jnp.copy(each.stopped) for each in skips_in(_of(state))])
        for x in self._sent:
            x.copy_to_host_async()

    def after_last(self, state: Any) -> None:
        """Raises a FloatingPointError if it has stopped by now, which is waited for."""
        if self.is_so(state):
            raise_if_stopped(_of(state))

    def is_so(self, state: Any) -> bool:
        """Whether it has stopped by now."""
        if not self._is_there:
            return False
        return _is_over(on_this_host([each.stopped for each in skips_in(_of(state))]))


def _is_over(stopped: list[Any]) -> bool:
    """Whether one has stopped; of many runs at once, in all of them."""
    return any(map(np.all, stopped))


def _of(state: Any) -> Any:
    return getattr(state, "opt_state", None)

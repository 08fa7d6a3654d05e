"""When a checkpoint is due by the time, at the same step in all processes."""

from __future__ import annotations

import time

import jax

from ..agreement import exchange


class Clock:
    """Tells every so many minutes.

    Of several processes the first one's clock counts. To ask it in each step would cost more than many a
    step takes; so it says after how many steps to ask it again, of which there are at most twice as many
    as the last time: that is, some ten times between two checkpoints.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60 * minutes

    def start(self) -> None:
        """Begins to count."""
        self._began = self._asked_at = time.monotonic()
        self._steps = self._left = 1

    def is_due(self) -> bool:
        """Whether the time is over, if so from the beginning again. Once after each step."""
        if self._seconds is None:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        now = time.monotonic()
        is_over = now - self._began >= self._seconds
        if is_over:
            self._began = now
        if jax.process_count() == 1:
            self._left = 1
            return is_over
        until = self._began + self._seconds - now
        pace = max(now - self._asked_at, 1e-6) / self._steps
        steps = max(1, min(2 * self._steps, int(until / pace)))
        said = exchange(f"{int(is_over)} {steps}")[0].split()
        self._asked_at, self._steps = now, int(said[1])
        self._left = self._steps
        return said[0] == "1"

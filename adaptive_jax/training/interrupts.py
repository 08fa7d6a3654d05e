"""What Ctrl-C does while a loop runs."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """What Ctrl-C does: it is counted first, to end the loop, and interrupts at the second time.

    An exception in the middle of a step would lose the state that the step has taken over, so a second
    one waits for its end. A third one does not.
    """

    def __init__(self) -> None:
        self.count = 0
        self.in_step = False
        self._usual: Any = None

    def __enter__(self) -> Interrupts:
        # Signals come to the main thread.
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.getsignal(signal.SIGINT)
            if self._usual is signal.default_int_handler:  # Somebody's own is left to do its work.
                signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._usual)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 2 or (self.count == 2 and not self.in_step):
            self._as_usual()

    def leave_step(self) -> None:
        """The end of a step, for which a second interrupt has waited."""
        self.in_step = False
        if self.count > 1:
            self._as_usual()

    def _as_usual(self) -> None:
        signal.signal(signal.SIGINT, self._usual)
        signal.raise_signal(signal.SIGINT)

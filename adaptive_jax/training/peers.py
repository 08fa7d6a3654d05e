"""The other processes of a loop: an error in one ends all, where they would wait for it for ever."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
import traceback

import jax

from .agreement import PREFIX, service

POLL = 1.0
"""Seconds between two looks at what the others say."""
GRACE = 5.0
"""Seconds that a process which waits for a failed one has left to end by itself."""

LONGEST = 30.0
"""Seconds for which process 0 stays for the others."""

_loops = itertools.count()


class PeerError(RuntimeError):
    """Another process failed, and this one cannot go on without it."""


class Peers:
    """What each process says to the others of a loop: that it failed, or after which step it ended.

    A thread looks for it. A process that waits in a collective for one that will not come cannot be
    reached by an exception; what failed is printed, and it is ended.

    are_here: whether there are any. Without, nothing of this happens.
    """

    def __init__(self, are_here: bool) -> None:
        self.are_here = are_here
        self.started = 0
        self._closed = threading.Event()
        self._trouble: str | None = None
        self._own = ""

    def __enter__(self) -> Peers:
        if self.are_here:
            number = next(_loops)
            self._client, self._place = service(), f"{PREFIX}/loop/{number}"
            self._exit = f"{PREFIX}/exit/{number}"
            self._index = jax.process_index()
            threading.Thread(target=self._watch, name="peers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def check(self) -> None:
        """Raises a PeerError if another process failed. Before each step."""
        if self._trouble is not None:
            raise PeerError(self._trouble)

    def end(self, done: int) -> None:
        """Waits until all have taken as many steps; a PeerError if one takes more, or fails."""
        if not self.are_here:
            return
        self.started = done
        self._client.key_value_set(f"{self._place}/{self._index}", f"ended {done}")
        while len(self.said()) < jax.process_count():
            self._look()
            self.check()
            time.sleep(0.02)
        self._look()
        self.check()

    def fail(self, error: BaseException) -> PeerError | None:
        """Tells the others. The error to raise instead, if it is only what another's did here."""
        if not self.are_here:
            return None
        if isinstance(error, PeerError):
            known = None
        else:
            # What a device reports may be that the other end of a connection is gone.
            with contextlib.suppress(Exception):
                self._look()
            is_of_device = isinstance(error, jax.errors.JaxRuntimeError)
            known = self._trouble if is_of_device else None
        said = "".join(traceback.format_exception_only(error)).strip() if known is None else known
        self._own = "".join(traceback.format_exception(error)) if known is None else ""
        self._tell_of_failure(said)
        threading.Thread(target=self._end_with_main_thread, name="end", daemon=True).start()
        atexit.register(self._tell_of_exit)
        return None if known is None else PeerError(known)

    def _tell_of_failure(self, text: str) -> None:
        with contextlib.suppress(Exception):  # The service may be gone.
            self._client.key_value_set(f"{self._place}/{self._index}", f"failed {text}", True)

    def said(self) -> dict[int, str]:
        """What each process said that said something."""
        found = self._client.key_value_dir_get(f"{self._place}/")
        return {int(key.rpartition("/")[2]): said for key, said in found}

    def _tell_of_exit(self) -> None:
        """Right before this process ends. All has been printed.

        The coordination service is in process 0, and JAX ends all others with it: it stays till they told.
        """
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{self._exit}/{self._index}", "", True)
        if self._index:
            return
        until = time.monotonic() + LONGEST
        while not self._are_gone() and time.monotonic() < until:
            time.sleep(0.1)
        _leave()  # JAX's own end would wait for those that are gone, and then abort.

    def _are_gone(self) -> bool:
        """Whether all others have told of their end."""
        try:
            told = self._client.key_value_dir_get(f"{self._exit}/")
        except Exception:
            return True
        return (
            len({int(key.rpartition("/")[2]) for key, _ in told} - {0}) == jax.process_count() - 1
        )

    def _end_with_main_thread(self) -> None:
        """In a thread of a process that failed: JAX's own end would wait for the others for minutes."""
        threading.main_thread().join()
        time.sleep(GRACE if self._index else LONGEST + GRACE)
        _leave()

    def _look(self) -> None:
        """Notes the trouble there is."""
        for index, said in sorted(self.said().items()):
            kind, _, rest = said.partition(" ")
            if index == self._index or self._trouble is not None:
                continue
            if kind == "failed":
                self._trouble = f"process {index} failed, which this one trained with: {rest}"
            elif int(rest) < self.started:
                self._trouble = (
                    f"process {index} ended after {rest} steps, and process {self._index} goes on: all "
                    "need as many batches, and must stop after the same step."
                )

    def _watch(self) -> None:
        """In a thread: looks until the loop is over, or ends the process if it hangs."""
        while not self._closed.wait(POLL):
            try:
                self._look()
            except Exception:  # The service is gone: JAX ends the process.
                return
            if self._trouble is not None:
                break
        else:
            return
        self._tell_of_failure(f"{self._trouble}")
        if self._closed.wait(GRACE):
            return
        print(
            f"{self._own}{self._trouble}\nThis process waits for it in vain, and is ended.",
            file=sys.stderr,
            flush=True,
        )
        self._tell_of_exit()
        _leave()


def _leave() -> None:
    """Ends the process at once."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)

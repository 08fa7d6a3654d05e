"""One line for every so many steps: for a cluster's log, a file, or TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core.arguments import whole
from .arrays import arrays_of, is_ready, is_used_up
from .returned import is_real_number

Row = dict[str, float | int]


class Log:
    """Prints and writes the numbers of every so many steps, and those of evaluations.

    A line is written when its numbers have arrived, some steps later: nothing waits for the device.

    Args:
      every: after how many steps; None for never.
      to: the path of a file, or of a folder for TensorBoard; None for none.
      is_here: whether this process writes.
    """

    def __init__(self, every: Any, to: Any, is_here: bool) -> None:
        if every is None and to is not None:
            raise ValueError(
                f"log_to={to!r:.200} needs to know how often: log_every=100, so many steps."
            )
        if every is not None:
            every = whole("log_every", every, 1, hint=" None is for no log.")
        self.every = every if is_here else None
        writer = None if to is None else _writer(to)
        self._writer = None if writer is None or not is_here else writer()
        self._waiting: list[tuple[int, dict[str, Any], bool]] = []
        self._last: tuple[int, float] | None = None
        self.print: Callable[[str], Any] = print

    def start(self, number: int) -> None:
        """The first step, with this number, was started: it has compiled, and the clock runs from here."""
        self._last = number, time.perf_counter()

    def add(self, number: int, values: Mapping[str, Any], is_evaluation: bool = False) -> None:
        """Takes what a step measured, if it is one of those, or what an evaluation came to."""
        if self.every is None or not (is_evaluation or number % self.every == 0):
            return
        numbers = _numbers(values)
        for x in arrays_of(numbers):
            x.copy_to_host_async()
        self._waiting.append((number, numbers, is_evaluation))

    def write(self, wait: bool = False) -> None:
        """Writes those lines whose numbers have arrived; all of them if it may wait."""
        count = 0
        for _, numbers, _ in self._waiting:
            if not (wait or all(map(is_ready, numbers.values()))):
                break
            count += 1
        if not count:
            return
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        # Several lines at once have arrived at one time: what is known is their mean speed.
        steps = [number for number, _, is_evaluation in ready if not is_evaluation]
        speed = self._speed(steps[-1]) if steps else None
        for number, numbers, is_evaluation in ready:
            if is_used_up(numbers):  # Of the state; the history says so.
                continue
            # A metric of the name counts before the step, say.
            others = {name: x for name, x in numbers.items() if name != "step"}
            row: Row = {"step": number}
            row |= {name: np.asarray(x).item() for name, x in others.items()}
            if speed is not None and not is_evaluation:
                row["steps_per_second"] = speed
            self.print(_line(row))
            if self._writer is not None:
                self._writer.write(row)

    def close(self) -> None:
        """Writes what has arrived, and closes the file."""
        try:
            self.write()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        # What ends the loop has its state: no second error, as of a disk that is full, takes its place.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.close()

    def _speed(self, number: int) -> float | None:
        now = time.perf_counter()
        before, self._last = self._last, (number, now)
        if before is None or number == before[0]:
            return None
        return float(f"{(number - before[0]) / max(now - before[1], 1e-9):.4g}")


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The real numbers among values, the loss first, those in trees by their path, "aux/accuracy"."""
    leaves = jax.tree_util.tree_leaves_with_path(values)
    found = {"/".join(map(_name, path)): x for path, x in leaves if is_real_number(x)}
    # A compiled step returns its metrics in alphabetical order.
    return {name: found[name] for name in sorted(found, key=lambda name: name != "loss")}


def _name(key: Any) -> str:
    parts = (getattr(key, each, None) for each in ("key", "name", "idx"))
    return str(next(each for each in parts if each is not None))


def _line(row: Row) -> str:
    """The numbers of the first level, on one line."""
    parts = []
    for name, x in row.items():
        text = f"{x:.5g}" if isinstance(x, float) else f"{x}"
        if name == "steps_per_second":
            parts.append(f"{text} steps/s")
        elif "/" not in name or name.startswith("aux/"):
            parts.append(f"{name} {text}")
    return "  ".join(parts)


class _Lines:
    """A file with one JSON object a line, with null for what is not finite."""

    def __init__(self, path: Path) -> None:
        self._file = _appended(path)

    def write(self, row: Row) -> None:
        # JSON has no word for NaN, nor for what is infinite.
        known = {name: x if math.isfinite(x) else None for name, x in row.items()}
        self._file.write(f"{json.dumps(known, allow_nan=False)}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Table:
    """A CSV file. A new column, as at the first evaluation, is put behind the others."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, _appended(path)
        with path.open(newline="") as file:
            self._names = next(csv.reader(file), [])

    def write(self, row: Row) -> None:
        new = [name for name in row if name not in self._names]
        if new:
            self._add_columns(new)
        self._file.write(_csv([[row.get(name, "") for name in self._names]]))
        self._file.flush()

    def _add_columns(self, names: list[str]) -> None:
        with self._path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self._names += names
        padded = [row + [""] * (len(self._names) - len(row)) for row in rows]
        # Beside it first: whatever happens, one of the two is whole.
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(_csv([self._names, *padded]), newline="")
        self._file.close()
        os.replace(beside, self._path)
        self._file = self._path.open("a", newline="")

    def close(self) -> None:
        self._file.close()


class _Board:
    """A folder for TensorBoard."""

    def __init__(self, path: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(
                f"log_to={str(path)!r} is a folder for TensorBoard, which needs tensorboardX: pip install "
                "'adaptive_jax[tensorboard]'. A file for the log ends in .jsonl or .csv."
            ) from None
        path.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(path))

    def write(self, row: Row) -> None:
        for name, x in row.items():
            if name != "step":
                self._writer.add_scalar(name, x, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


_KINDS = {".jsonl": _Lines, ".csv": _Table, "": _Board}


def _writer(to: Any) -> Callable[[], Any]:
    """What writes to a path, opened when it is called: an error before the first step."""
    if not isinstance(to, (str, os.PathLike)) or not os.fspath(to):
        raise TypeError(f"log_to={to!r:.200} must be a path, such as 'run/log.jsonl'.")
    path = Path(to).expanduser()
    kind = _Board if path.is_dir() else _KINDS.get(path.suffix)
    if kind is None:
        raise ValueError(
            f"log_to={str(to)!r} ends in {path.suffix!r}: .jsonl is for one JSON object a line, .csv for a "
            "table, and a name without an ending for a folder that TensorBoard reads."
        )

    def opened() -> Any:
        try:
            return kind(path)
        except OSError as error:
            message = f"log_to={str(to)!r} cannot be written, and no step was taken: {error}"
            raise OSError(error.errno, message) from error

    return opened


def _appended(path: Path) -> Any:
    """A file to write on at its end, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", newline="")
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):  # A run was killed while it wrote.
        file.write("\n")
    return file


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

"""Runs divided among processes: each does a share by itself, and all have what they came to.

Runs know nothing of each other, so nothing is exchanged between devices. What is said and what is handed
over goes through JAX's coordination service: a process that waits there sees that another one failed.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._core import pytrees
from ..._core.placement import is_key
from ..agreement import PREFIX, SECONDS, exchange, service
from .runs import Plan, Traced

POLL = 0.02
"""Seconds between two looks at what the others say."""
PART = 1 << 20
"""How many bytes a process hands over at a time: process 0 holds those of all."""

_works, _results = itertools.count(), itertools.count()


def shares(total: int) -> list[range]:
    """Which of so many runs each process does: contiguous, and as many for each, or one more."""
    count = jax.process_count()
    ends = [total * index // count for index in range(count + 1)]
    return [range(*each) for each in itertools.pairwise(ends)]


@contextlib.contextmanager
def apart(what: str) -> Iterator[Callable[[], None]]:
    """Around what each process does by itself, for as long as it takes: where one fails, all fail.

    Gives what is to be called now and then, which raises a RuntimeError if another one failed. At the end
    it is waited for all.

    what: what they do, for the RuntimeError.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    client, place = service(), f"{PREFIX}/apart/{next(_works)}"
    index, trouble = jax.process_index(), ""

    def done() -> int:
        """How many processes are done."""
        nonlocal trouble
        said = [text for _, text in sorted(client.key_value_dir_get(f"{place}/"))]
        trouble = next(filter(None, said), "")
        if trouble:
            raise RuntimeError(trouble)
        return len(said)

    def look() -> None:
        done()

    try:
        yield look
    except BaseException as error:  # Ctrl-C too.
        own = f"{type(error).__name__}: {error}"
        failed = f"{what} failed in process {index}, and so does it in all: {own}"
        client.key_value_set(f"{place}/{index:06}", trouble or failed)
        raise
    client.key_value_set(f"{place}/{index:06}", "")
    while done() < jax.process_count():
        time.sleep(POLL)


def hand_over(result: np.ndarray, places: Sequence[np.ndarray]) -> None:
    """Fills an array with what each process has: in the first axis, at its places."""
    if jax.process_count() == 1:
        return
    client, index = service(), jax.process_index()
    row = result[:1].nbytes
    sizes = [len(each) * row for each in places]
    own, whole = result[places[index]].tobytes(), [bytearray() for _ in places]
    for start in range(0, max(sizes), PART):
        place = f"{PREFIX}/results/{next(_results)}"
        part = own[start : start + PART]
        if part:
            client.key_value_set_bytes(f"{place}/{index}", part)
        exchange("")
        for other, size in enumerate(sizes):
            if start < size:
                key = f"{place}/{other}"
                whole[other] += client.blocking_key_value_get_bytes(key, SECONDS * 1000)
        exchange("")
        if part:
            client.key_value_delete(f"{place}/{index}")
    for here, found in zip(places, whole, strict=True):
        result[here] = np.frombuffer(found, result.dtype).reshape(len(here), *result.shape[1:])


def facts(
    columns: Mapping[str, Any],
    seeds: np.ndarray,
    judged: Mapping[str, Any],
    batches: Any,
    plans: Sequence[Plan],
    traced: Sequence[Traced],
) -> dict[str, str]:
    """What a sweep is, by the names of its arguments.

    judged: by what the runs are judged.
    """
    found = {f"the axis {name}": fact(column) for name, column in columns.items()}
    found |= {"seeds": fact(seeds)} | {name: fact(value) for name, value in judged.items()}
    for path, x in jax.tree_util.tree_leaves_with_path(batches):
        found[f"batches{jax.tree_util.keystr(path)}"] = _bits(x)
    for plan, each in zip(plans, traced, strict=True):
        choices = f" with {plan.run.choices}" if plan.run.choices.values else ""
        text, outline = each.program
        what = f"a program of {len(text.splitlines())} lines that returns {outline}"
        found[f"train{_same_everywhere(choices)}"] = f"{what}, {_checksum(text.encode())}"
        for number, x in enumerate(each.constants):
            found[f"array {number} that train{_same_everywhere(choices)} reads"] = _bits(x)
    return found


def fact(value: Any) -> str:
    """A value as text: the same in all processes for the same value, however long it is."""
    text = _same_everywhere(repr(value.tolist() if isinstance(value, np.ndarray) else value))
    return text if len(text) <= 200 else f"{text[:200]}…, {_checksum(text.encode())}"


def _same_everywhere(text: str) -> str:
    """Without the addresses in memory that Python tells of functions."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _bits(x: Any) -> str:
    data = jax.random.key_data(x) if is_key(x) else x
    return f"{pytrees.describe(x)}, {_checksum(np.asarray(data).tobytes())}"


def _checksum(data: bytes) -> str:
    return f"of the bits {zlib.crc32(data):08x}"

"""What several processes tell one another before they do something together, so that none waits for ever.

A process that waits in a collective for another one cannot be reached. What they say here goes through
JAX's coordination service instead, which is there beside the devices.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .._core.placement import is_key
from . import origin
from .arrays import arrays_of

PREFIX = "adaptive_jax"
SECONDS = 600
"""For how long one process waits for what another one says: it may load data, or compile."""

_counts = itertools.count()


def service() -> Any:
    """The client of JAX's coordination service, which JAX has no public name for."""
    from jax._src import distributed

    return distributed.global_state.client


def exchange(text: str) -> list[str]:
    """What each process says, in their order. All must come here equally often."""
    client, place = service(), f"{PREFIX}/said/{next(_counts)}"
    client.key_value_set(f"{place}/{jax.process_index():06}", text)
    client.wait_at_barrier(place, SECONDS * 1000)
    return [said for _, said in sorted(client.key_value_dir_get(f"{place}/"))]


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Around what each process does by itself before all do something: where one fails, all fail.

    what: what they are about to do, for the RuntimeError of the other ones.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        exchange(f"{type(error).__name__}: {error}")
        raise
    for index, said in enumerate(exchange("")):
        if said:
            raise RuntimeError(f"{what} failed in process {index}, and so does it in all: {said}")


def check_alike(what: str, facts: Mapping[str, str]) -> None:
    """Raises a ValueError in every process, with what differs first, unless all have the same facts.

    what: what the facts are of.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts)
    hashes = exchange(hashlib.sha256(text.encode()).hexdigest())
    other = next((index for index, each in enumerate(hashes) if each != hashes[0]), None)
    if other is None:
        return
    said = exchange(text if jax.process_index() in (0, other) else "")
    first, second = (json.loads(said[index]) for index in (0, other))
    name = next(
        name for name in [*first, *second] if first.get(name, None) != second.get(name, None)
    )
    raise ValueError(
        f"{what} is not the same in all processes: {name} is {first.get(name, 'missing')} in process 0, "
        f"and {second.get(name, 'missing')} in process {other}. Each process must make the same from the "
        "same seed, the same settings and the same files."
    )


def spans_processes(tree: Any) -> bool:
    """Whether an array is on devices of several processes: they train together, not each for itself."""
    return jax.process_count() > 1 and any(not x.is_fully_addressable for x in arrays_of(tree))


def facts_of(state: Any, bits: bool = True) -> dict[str, str]:
    """What a state is, by the paths of its entries, and what made it.

    bits: whether those of an array that every device has the whole of belong to it.
    """
    made = json.dumps(origin.of(state), default=str)
    entries = jax.tree_util.tree_leaves_with_path(state)
    facts = {f"state{jax.tree_util.keystr(path)}": _fact(x, bits) for path, x in entries}
    return facts | {"what the optimizer is made of": made}


def _fact(x: Any, bits: bool) -> str:
    if not isinstance(x, jax.Array):
        return repr(x)
    x = jax.random.key_data(x) if is_key(x) else x
    place = f"on {x.sharding.num_devices} devices"
    if any(spec := tuple(getattr(x.sharding, "spec", ()))):
        place += f", split by {spec}"
    fact = f"{x.dtype}{list(x.shape)} {place}"
    if not (bits and x.is_fully_replicated) or x.is_deleted():
        return fact
    return f"{fact}, of the bits {zlib.crc32(np.asarray(x.addressable_data(0)).tobytes()):08x}"

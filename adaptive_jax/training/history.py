"""The metrics of all steps, brought to the host without waiting for the device."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import arrays_of, is_there, is_used_up
from .processes import on_this_host


class History(dict[str, Any]):
    """What `fit` returns beside the state: a dict of the metrics of all steps, in NumPy arrays.

    interrupted: whether Ctrl-C, or a cluster's notice, ended the loop, so that a script that has more to
      do can stop too.
    stopped_by: which callback ended the loop, and why; nothing if none did.
    """

    interrupted: bool = False
    stopped_by: str = ""


def _flatten_history(history: History) -> Any:
    names = tuple(sorted(history))
    children = [(jax.tree_util.DictKey(name), history[name]) for name in names]
    return children, names  # Not whether it was interrupted: two histories are mapped together.


def _unflatten_history(aux: Any, values: Iterable[Any]) -> History:
    return History(zip(aux, values, strict=True))


# A subclass of dict would be a leaf of a tree.
jax.tree_util.register_pytree_with_keys(History, _flatten_history, _unflatten_history)


_TOGETHER = 32


class Record:
    """The metrics of all steps, brought to the host many steps at a time, as one array for each.

    What is on its way there is left alone until as many more steps have been taken, by when it has
    arrived. Nothing of a device, nor a view of it, is kept.
    """

    def __init__(self) -> None:
        self._recent: list[Any] = []
        self._sent: tuple[list[Any], list[Any]] | None = None
        self._treedef: Any = None
        self._blocks: list[list[np.ndarray]] = []

    def add(self, metrics: Any) -> bool:
        """Takes the metrics of a step. Whether there is something new on the host."""
        self._recent.append(metrics)
        if len(self._recent) < _TOGETHER:
            return False
        return self._advance()

    def _advance(self) -> bool:
        """Fetches what was sent, and sends what is recent."""
        has_arrived = self._sent is not None
        if self._sent is not None:
            self._blocks.append([_fetched(column) for column in jax.device_get(self._sent[1])])
            self._sent = None
        if self._recent:
            self._sent, self._recent = (self._recent, self._columns(self._recent)), []
        return has_arrived

    def _columns(self, metrics: list[Any]) -> list[Any]:
        """One column for each metric, on its way to the host."""
        leaves, treedef = jax.tree.flatten(metrics)
        each = treedef.children()
        if self._treedef is None:
            self._treedef = each[0]
        for other, structure in zip(metrics, each, strict=True):
            if structure != self._treedef:
                first = self._treedef.unflatten(range(self._treedef.num_leaves))
                raise ValueError(
                    f"a step returned the metrics {', '.join(_paths(other))}, and the first one "
                    f"{', '.join(_paths(first))}: they must be the same in every step."
                )
        count = self._treedef.num_leaves
        leaves = on_this_host(leaves)
        try:
            return [_sent(leaves[place::count]) for place in range(count)]
        except Exception:
            paths = itertools.chain.from_iterable(map(_paths, metrics))
            for path, x in zip(paths, leaves, strict=True):
                if is_used_up(x):
                    raise ValueError(
                        f"metrics{path} is an array of the state, and was written over by the step "
                        "after: let the step return a copy of it, jnp.copy(…)."
                    ) from None
            raise

    def loss(self) -> str:
        """The last loss that has arrived, for a progress bar."""
        last = self._treedef.unflatten([column[-1] for column in self._blocks[-1]])
        loss = np.asarray(last.get("loss", ""))
        is_number = loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
        return f"loss {float(loss):.4g}" if is_number else ""

    def history(self) -> History:
        """All of them. It waits for the last one."""
        while self._recent or self._sent:
            self._advance()
        if not self._blocks:
            return History()
        columns = [_joined(parts) for parts in zip(*self._blocks, strict=True)]
        return History(self._treedef.unflatten(columns))

    def metrics(self) -> list[Any]:
        """Those of the last steps, as long as they are not on the host."""
        return (self._sent[0] if self._sent else []) + self._recent

    def rescued(self, wait: bool) -> History:
        """Those of the steps before the first one that failed, or that is not done yet."""
        there = [*itertools.takewhile(lambda each: is_there(each, wait), self.metrics())]
        self._sent, self._recent = None, there
        try:
            return self.history()
        except Exception:  # What made it fail: metrics that differ.
            self._sent, self._recent = None, []
            return self.history()


def _paths(tree: Any) -> list[str]:
    """The path of each leaf."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@jax.jit
def _stack(*numbers: jax.Array) -> jax.Array:
    return jax.lax.concatenate([jax.lax.expand_dims(x, [0]) for x in numbers], 0)


def _sent(values: list[Any]) -> Any:
    """The values of a metric, one for each step, on their way to the host: numbers as one array."""
    is_number = isinstance(values[0], jax.Array) and values[0].shape == ()
    if is_number and len(values) == _TOGETHER and len(set(map(type, values))) == 1:
        # Numbers of different shapes, dtypes or devices cannot be one array, and do not raise below.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            values = _stack(*values)
    for x in arrays_of(values):
        x.copy_to_host_async()
    return values


def _fetched(column: Any) -> np.ndarray:
    """The values of a metric on the host, one for each step, in an array of their own."""
    if isinstance(column, np.ndarray):
        return np.array(column)
    return _joined([np.asarray(each)[None] for each in column])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other; where their rows have different shapes, an array of the rows."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    rows = [row for part in parts for row in part]
    joined = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        joined[place] = row
    return joined

"""What a row of the table of departures is, and how an implementation is run for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

AGREES = "agrees"
"""What to write in place of a departure where an implementation has been compared and has none."""


@dataclass(frozen=True)
class Departure:
    """A row: an implementation of an algorithm, and how it departs from the paper.

    algorithm: its name here, as in `aj.adan`.
    implementation: whose, as people call it: "optax", "torch", "keras", or the package and its author.
    departs: how, in a sentence that stands in a table, formulas in Unicode; or `AGREES`.
    shows: a function without arguments that runs it beside ours, and asserts what is said.
    package: what must be installed for that, as Python imports it; the implementation's name if None.
    slow: whether it takes more than two seconds, or needs more than jax and optax.
    """

    algorithm: str
    implementation: str
    departs: str
    shows: Callable[[], None]
    package: str | None = None
    slow: bool = False

    @property
    def imports(self) -> str:
        """The name of the package that it runs."""
        return self.package or self.implementation

    @property
    def is_installed(self) -> bool:
        """Whether it can be run here."""
        return importlib.util.find_spec(self.imports) is not None


def updates_of(tx: Any, gradients: Any, params: Any) -> list[Any]:
    """What an optax transformation adds to parameters in each step, which it sees as it has moved them."""
    state, updates = tx.init(params), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        updates.append(update)
    return updates


def apart(one: Any, other: Any) -> float:
    """The largest difference between two lists of arrays, relative to the largest number of the second."""
    one, other = (np.stack([np.asarray(x, np.float64) for x in each]) for each in (one, other))
    return float(np.abs(one - other).max() / np.abs(other).max())

"""What was carried over from one optimizer's state to another's, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from .._core.paths import some
from .search.table import Table


@dataclass(frozen=True)
class CarriedEntry:
    """What became of one array, or of what is kept for all of them, in one rule or wrapper.

    owner: the rule, "ScaleByAdam", or the wrapper.
    what: the path of the array, "['dense']['kernel']"; or the entry of the state, "count".
    entries: what is kept of the array, "mu, nu"; empty for what is no array's.
    kept: whether it is that of the old state.
    why: why it is not; empty if it is.
    """

    owner: str
    what: str
    entries: str
    kept: bool
    why: str = ""


@dataclass(frozen=True, repr=False)
class Carried:
    """What `aj.carry_state` kept, what it initialised, and what it left out; `print` shows a table.

    rows: one for each array and each rule or wrapper that keeps something of it, and one for each entry
      that is for all arrays: owner, what, entries, kept, why.
    left_out: the paths of what the old state has, and the new one has no place for.
    """

    rows: tuple[CarriedEntry, ...]
    left_out: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """The paths of the arrays of which all is kept."""
        return self._paths(new=False)

    @property
    def initialised(self) -> tuple[str, ...]:
        """The paths of the arrays of which something is new."""
        return self._paths(new=True)

    def _paths(self, new: bool) -> tuple[str, ...]:
        is_new: dict[str, bool] = {}
        for row in self.rows:
            if row.entries:
                is_new[row.what] = is_new.get(row.what, False) or not row.kept
        return tuple(path for path, each in is_new.items() if each is new)

    def _table(self) -> Table:
        alike: dict[tuple[str, str, bool, str], list[str]] = {}
        for row in self.rows:
            what = row.what or "the one array"
            alike.setdefault((row.owner, row.entries, row.kept, row.why), []).append(what)
        rows = []
        for (owner, entries, kept, why), whats in alike.items():
            names = some(whats) if entries else ", ".join(whats)
            rows.append((owner, names, entries, "kept" if kept else f"new: {why}"))
        gone = f"left out of the old state: {some(self.left_out)}" if self.left_out else ""
        return Table(("of", "what", "entries", ""), tuple(rows), gone)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

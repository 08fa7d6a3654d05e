"""Where other implementations depart from the papers: a row each, with what runs them and shows it.

A family a file, named like that in adaptive_jax/rules. Each has a list `DEPARTURES`; `ROWS` are those of
all files. `tests/rules/test_departures.py` runs every row. `page.py` makes a page of the documentation
of them.

What a row's `shows` asserts comes in two halves: that the other implementation does what is said of it, so
that the row falls when it is mended, and that ours does what the paper says.
"""

from __future__ import annotations

import importlib
import pkgutil

from .row import AGREES as AGREES
from .row import Departure as Departure

OTHERWISE_IN_OPTAX = (
    "adan", "optimistic_adam", "optimistic_adam_v2", "rprop", "scale_by_adan", "scale_by_rprop",
    "scale_by_sm3", "scale_by_yogi", "sm3", "yogi",
)  # fmt: skip
"""What computes something else in optax, by its arguments or by its defaults: rows below say what."""

ROWS: dict[str, Departure] = {}
"""All rows, by a name for each: the algorithm, the implementation, and a number where there are several."""

for _file in pkgutil.iter_modules(__path__):
    if _file.name not in ("row", "page"):
        for _row in importlib.import_module(f"{__name__}.{_file.name}").DEPARTURES:
            _name = f"{_row.algorithm} {_row.implementation}"
            _same = sum(each.partition("#")[0] == _name for each in ROWS)
            ROWS[f"{_name}#{_same + 1}" if _same else _name] = _row

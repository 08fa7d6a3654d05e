"""The page of departures, made of the rows and of the tables that run the authors' own code."""

from __future__ import annotations

from collections.abc import Iterator

from tests.rules.test_authors import LOSSES as RECORDED
from tests.rules.test_authors_of_free import LIVE

from . import ROWS
from .row import AGREES

HEAD = """\
# Departures

What other implementations compute: as the paper, and this library, have it, or how they depart from it.
Each row is shown by a test that runs the other implementation beside ours, so that a row falls when it is
mended; with PyTorch 2.13, Keras 3.15 and the authors' packages where these are installed,
`pip install -e ".[interop,authors]"`. Where a commit is named, that code was run once, and ours gives the
losses that it gave.

"agrees" is said of the same options, and of float32 arrays. PyTorch's and Keras's other optimizers are in
`aj.interop`, exact to them; [Porting](porting.md) has what differs from optax.

| algorithm | implementation | what it computes | shown in |
|---|---|---|---|
"""

NAMES = {
    "torch": "torch.optim",
    "keras": "Keras",
    "dog": "`dog-optimizer`",
    "mechanic_pytorch": "`mechanic-pytorch`",
    "momo": "`momo-opt`",
}
"""What people call an implementation, where it is not what Python calls the package."""


def cells() -> Iterator[tuple[str, str, str, str]]:
    """Algorithm, implementation, what it computes, and the test, of each row."""
    for row in ROWS.values():
        file = row.shows.__module__.rpartition(".")[2]
        name = NAMES.get(row.implementation, row.implementation)
        yield row.algorithm, name, row.departs, f"`tests/departures/{file}.py`"
    for name, ((package, _), _) in LIVE.items():
        implementation = NAMES.get(package, f"`{package}`")
        yield name.split()[0], implementation, AGREES, "`tests/rules/test_authors_of_free.py`"
    for name, (source, _, _) in RECORDED.items():
        place, _, commit = source.partition(", ")
        implementation = f"[{place.partition('/')[2]}](https://{place}) {commit}"
        algorithm = name.replace("-", " ").split()[0]
        yield algorithm, implementation, AGREES, "`tests/rules/test_authors.py`"


def page() -> str:
    """The page, with a row for an algorithm and an implementation."""
    table: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for algorithm, implementation, departs, test in cells():
        said, tests = table.setdefault((algorithm, implementation), ({}, {}))
        said[departs] = tests[test] = None
    lines = []
    for (algorithm, implementation), (said, tests) in sorted(table.items()):
        text = "; ".join(said).replace("|", "\\|")
        lines.append(f"| `{algorithm}` | {implementation} | {text} | {', '.join(tests)} |\n")
    return HEAD + "".join(lines)

"""Small tables that print in a terminal and render in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under headings: `print` aligns them, a notebook shows them as HTML.

    headings: one per column.
    rows: the cells, as text.
    caption: lines below; empty for none.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __repr__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.caption] if self.caption else text)

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        below = "<br>".join(map(html.escape, self.caption.splitlines()))
        caption = f'<caption style="caption-side: bottom; text-align: left">{below}</caption>'
        return (
            f"<table>{caption if self.caption else ''}<thead>{row(self.headings, 'th')}</thead>"
            f"<tbody>{''.join(row(cells, 'td') for cells in self.rows)}</tbody></table>"
        )


def shown(value: Any) -> str:
    """A value in a cell: four digits of a number, the name of a function."""
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}"
    return getattr(value, "__name__", None) or str(value)


def plain(value: Any) -> Any:
    """A Python number for one of NumPy's; everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def counted(count: int, what: str) -> str:
    """ "1 seed", "2 seeds", "3 studies"."""
    many = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count} {what if count == 1 else many}"


def with_spread(mean: float, deviation: float) -> str:
    """A mean and a deviation, "0.1234 ± 0.0056", to the digits that the deviation gives sense to."""
    if not math.isfinite(deviation) or deviation <= 0 or not math.isfinite(mean):
        return shown(mean)
    digits = 1 - math.floor(math.log10(deviation))
    size = math.floor(math.log10(abs(mean))) if mean else 0
    if -4 < size < 6 and 0 <= digits < 8:
        return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    return f"{mean:.4g} ± {deviation:.2g}"

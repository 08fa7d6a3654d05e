"""Progress bars, where tqdm is installed and the output is a terminal."""

from __future__ import annotations

from typing import Any

import jax


class _NoBar:
    """A progress bar that is not shown."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...
    def update(self, count: int = 1) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool) -> None: ...
    def write(self, text: str) -> None:
        print(text, flush=True)


def progress_bar(progress: bool | None, total: int | None, unit: str = "step") -> Any:
    """A bar of tqdm, or one that is not shown: True, False, or None for what the output suits."""
    if progress is False or jax.process_index() > 0:  # One bar for all processes.
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        if progress:
            raise ImportError("progress=True needs tqdm: pip install tqdm.") from None
        return _NoBar()
    # disable=None: no bar where the output is not a terminal.
    return tqdm(total=total, unit=unit, disable=None if progress is None else False)

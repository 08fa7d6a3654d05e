"""The folder of a run, as Orbax keeps it, and the checkpoint that was touched last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .memories import ITEM

_last: Path | None = None
_restored: set[Path] = set()


def last() -> Path | None:
    """The checkpoint that this process saved or restored last, if it did."""
    return _last


def remember(path: Path, is_restored: bool = False) -> None:
    """Notes a checkpoint for `last`, and whether it was restored, or saved."""
    global _last
    _last = path.absolute()
    if is_restored:
        _restored.add(_last)
    else:
        _restored.discard(_last)


def was_restored(path: Path) -> bool:
    """Whether this process restored a checkpoint, and did not save it itself."""
    return path.absolute() in _restored


def orbax_checkpoint() -> Any:
    """Orbax's module; an ImportError that says how to get it."""
    try:
        import orbax.checkpoint
    except ImportError:
        raise ImportError('Checkpoints need Orbax: pip install -e ".[checkpoint]".') from None
    return orbax.checkpoint


def opened(orbax: Any, directory: str | Path, keep: int | None, in_background: bool = False) -> Any:
    """Orbax's manager of a run's folder, to be used in a `with`."""

    class Manager(orbax.CheckpointManager):
        """Does not ask whether machines are taken away: `fit` does, which counts its own steps for it."""

        def reached_preemption(self, step: int) -> bool:
            return False

    options = orbax.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=in_background, create=True
    )
    handlers = {
        "state": orbax.StandardCheckpointHandler(),
        "layout": orbax.JsonCheckpointHandler(),
        ITEM: orbax.StandardCheckpointHandler(),
    }
    return Manager(Path(directory).absolute(), options=options, item_handlers=handlers)


def check_order(name: str, directory: Any) -> None:
    """Raises a TypeError for a state in the place of the directory.

    name: the function that was called.
    """
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(
            f"directory={directory!r:.80} is no path: the order is {name}(directory, state)."
        )

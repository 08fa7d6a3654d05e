"""Arrays by their paths, a/b/c, and what is looked for in these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.tree_util import keystr


def path_name(path: Any) -> str:
    """The path of an array as patterns see it, a/b/c."""
    return keystr(path, simple=True, separator="/")


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


@dataclass(frozen=True)
class Pattern:
    """A regular expression that is looked for anywhere in paths: data that is compared by what it says."""

    text: str
    flags: int

    @classmethod
    def of(cls, pattern: Any, what: str) -> Pattern:
        """The pattern that a user gives, described as what; a ValueError if it does not compile."""
        try:
            compiled = re.compile(pattern)
            compiled.search("a path")  # A pattern of bytes matches no text.
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{what}, which is no regular expression for paths: {error}."
            ) from None
        return cls(compiled.pattern, compiled.flags)

    def is_in(self, name: str) -> bool:
        """Whether it is found in a path."""
        return re.search(self.text, name, self.flags) is not None

    @property
    def given(self) -> Any:
        """What it was made of: a text, or, with flags of its own, a compiled expression."""
        is_plain = self.flags == re.compile("").flags
        return self.text if is_plain else re.compile(self.text, self.flags)

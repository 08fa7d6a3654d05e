"""Docstrings whose arguments are described once, in a table or in a rule, and not once per function."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def documented(meanings: Mapping[str, str]) -> Callable[[_Function], _Function]:
    """A decorator that puts a function's arguments, with these meanings, before its example."""

    def complete(function: _Function) -> _Function:
        lines = [f"{name}: {meanings[name]}" for name in inspect.signature(function).parameters]
        body, _, example = _clean(function.__doc__ or "").partition("Example:\n")
        arguments = "\n".join(map(_filled, lines))
        raises = (
            "Raises:\n  TypeError, ValueError: for an argument of the wrong type or out of range, "
            "by name."
        )
        function.__doc__ = f"{body}Args:\n{arguments}\n\n{raises}\n\nExample:\n{example}"
        return function

    return complete


@functools.cache  # Most arguments are those of many functions, and filling takes time at import.
def _filled(line: str) -> str:
    return textwrap.fill(line, 96, initial_indent="  ", subsequent_indent="    ")


def paragraphs(described: Any) -> list[str]:
    """The paragraphs of a docstring."""
    return _clean(described.__doc__ or "").split("\n\n")


def equation_of(described: Any) -> str:
    """The first indented paragraph of a docstring, or nothing."""
    return next((each for each in paragraphs(described) if each.startswith("    ")), "")


def meanings_of(described: Any) -> dict[str, str]:
    """What a docstring says in lines `name: meaning`, which go on where they are indented by two."""
    return dict(_meanings_in(described.__doc__ or ""))


# At import many functions ask for the docstring of one rule.
_clean = functools.cache(inspect.cleandoc)


@functools.cache
def _meanings_in(text: str) -> dict[str, str]:
    found = re.findall(r"^(\w+): (.*(?:\n  .*)*)", _clean(text), re.M)
    return {name: " ".join(meaning.split()) for name, meaning in found if name != "Example"}

"""From the docstrings of this library to reStructuredText that Sphinx's napoleon reads.

They are plain text: `code` in single backticks, equations and code indented by four spaces, and at
the end sections such as `Args:`, whose entries are indented by two.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

_SECTION = re.compile(r"^([A-Z][\w ]*):\n(?=  \S)", re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n\n*)+)")


def restructured(docstring: str, owner: Any, links: Mapping[str, str]) -> str:
    """A docstring in reStructuredText.

    Args:
      docstring: the docstring, without indentation.
      owner: what it documents.
      links: from what may stand in backticks to the full name of what it is then a link to.
    """
    description, *sections = _SECTION.split(docstring + "\n")
    if "Args" not in sections:
        description = _with_heading(description, owner)
    parts = _INDENTED.split(description)
    parts[0::2] = [_prose(part, links) for part in parts[0::2]]
    parts[1::2] = [_preformatted(part) for part in parts[1::2]]
    for heading, body in zip(sections[0::2], sections[1::2], strict=True):
        if heading == "Returns":  # napoleon would take what stands before a colon for a type
            parts.append(f":Returns:\n{_prose(body, links)}")
        else:
            body = body if heading.startswith("Example") else _prose(body, links)
            parts.append(f"{heading}:\n{body}")
    # napoleon takes what stands before a colon in the first line of a constant for its type.
    return "\n" + "".join(parts)


def _with_heading(text: str, owner: Any) -> str:
    """Descriptions of fields, or of arguments, that stand without a heading, with one."""
    if inspect.isclass(owner):
        heading = "Fields"
        names = [name for base in owner.__mro__ for name in inspect.get_annotations(base)]
    elif inspect.isroutine(owner):
        heading, names = "Args", list(inspect.signature(owner).parameters)
    else:
        return text
    entries = rf"(?<=\n\n)(?:(?:{'|'.join(names)}): .*\n(?:  .*\n)*)+"
    return re.sub(entries, lambda found: f"{heading}:\n{textwrap.indent(found[0], '  ')}", text)


def _preformatted(text: str) -> str:
    """An indented paragraph: code if it is Python, else an equation or a table."""
    try:
        ast.parse(textwrap.dedent(text))
    except SyntaxError:
        return f".. code-block:: text\n\n{text}"
    return f".. code-block:: python\n\n{text}"


def _prose(text: str, links: Mapping[str, str]) -> str:
    """Text with its code marked, and without characters that would mean something else."""
    parts = re.split(r"`([^`]+)`", text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = re.sub(r"[\\*|]|_(?!\w)", r"\\\g<0>", part)
        elif part in links:
            parts[index] = f":py:obj:`{part} <{links[part]}>`\\ "
        else:
            parts[index] = f"``{' '.join(part.split())}``\\ "
    # "\ " lets a letter follow at once, as in `Slot`s. Where a space follows it does not show.
    return "".join(parts).replace("\\  ", " ").replace("\\ \n", "\n")

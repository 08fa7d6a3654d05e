"""Writes what is derived from the catalogue: `python tests/write_catalogue.py` in the top folder.

That is the table of algorithms, the exports, the page of departures, and the layouts of states, of which
none that is recorded is ever written over: a change of it breaks saved runs. The tests say when the
command has to be run again.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402  # after the line that makes the package importable
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

try:
    import adaptive_jax as aj
except ImportError as error:
    raise ImportError(
        f"{error}. Where a name was taken out or renamed, take its lines out between the <catalogue> "
        "markers of adaptive_jax/__init__.py and adaptive_jax/rules/__init__.py, and run this again."
    ) from error
from catalogue import CASES, CATALOGUE  # noqa: E402

from adaptive_jax._core import documentation  # noqa: E402
from adaptive_jax.rules._factory import Algorithm, Paper, numbers_kept, option  # noqa: E402
from tests.departures.page import page as page_of_departures  # noqa: E402

LAYOUTS = ROOT / "tests" / "data" / "layouts.json"
MARKERS = re.compile(
    r"(?<=<catalogue>)([^\n]*\n).*?(?=^[^\n]*</catalogue>)", re.DOTALL | re.MULTILINE
)


def row(algorithm: Algorithm, which: str = "") -> str:
    """A row of the table, of a whole optimizer or of the variant that some arguments choose."""
    rule = algorithm.variants.get(which, algorithm.rule)
    first = next(each for each in CATALOGUE.values() if each.rule is algorithm.rule)
    changes = {
        name: json.dumps(parameter.default).replace("true", "True")
        for name, parameter in algorithm.parameters.items()
        if name in first.parameters and parameter.default != first.parameters[name].default
    }
    own = documentation.equation_of(inspect.unwrap(algorithm.factory))
    if changes and not which and algorithm.whole and not own:
        equation = f"`{first.name}` with " + ", ".join(f"`{k}={v}`" for k, v in changes.items())
    else:
        equation = equation_of(algorithm, rule)
    pieces = []
    for piece in pieces_of(rule) if algorithm.whole else [algorithm]:
        taken = [f"{k}={v}" for k, v in changes.items() if k in piece.parameters]
        pieces.append(f"`{piece.name}({', '.join(taken)})`" if taken else f"`{piece.name}`")
    papers = paper_of(rule) if which else algorithm.papers
    cells = [
        (f"`{algorithm.name}({which})`" if which else f"`{algorithm.name}`") * algorithm.whole,
        ", ".join(pieces),
        equation.replace("|", "\\|"),
        "; ".join(", ".join(filter(None, (f"[{x.authors}]({x.link})", x.part))) for x in papers),
        str(4 * sum(map(numbers_kept, (rule, *algorithm.also * (not which))))),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def equation_of(algorithm: Algorithm, rule: type[aj.Rule]) -> str:
    """The equation in a line, and what the options make of it."""
    # Of one that puts several rules together, what it does is no equation of one of them.
    function = inspect.unwrap(algorithm.factory)
    composes = algorithm.also or (documentation.equation_of(function) and not algorithm.variants)
    source = rule if algorithm.whole and not composes else function
    found = documentation.equation_of(source) or documentation.equation_of(rule)
    parts = [", ".join(re.sub(r" {2,}", " ", line.strip()) for line in found.splitlines())]
    described = documentation.meanings_of(rule)
    if rule in algorithm.variants.values() or not algorithm.variants:
        described = documentation.meanings_of(inspect.unwrap(algorithm.factory)) | described
    for name, meaning in described.items():
        if name in algorithm.parameters and (chosen := option(meaning)):
            parts.append(f"`{name}={chosen[0]}`: {chosen[1]}")
    return "; ".join(parts)


def pieces_of(rule: type[aj.Rule]) -> list[Algorithm]:
    """What is only this rule, for a chain."""
    return [each for each in CATALOGUE.values() if each.rule is rule and not each.whole]


def paper_of(rule: type[aj.Rule]) -> tuple[Paper, ...]:
    paper = vars(rule)["paper"]
    return paper if isinstance(paper, tuple) else (paper,)


def table() -> str:
    """Whole optimizers and their variants by the years of their papers, then what is for chains alone."""
    ordered = sorted(CATALOGUE.values(), key=lambda algorithm: algorithm.year)
    whole = [each for each in ordered if each.whole]
    rules = {rule for each in whole for rule in (each.rule, *each.variants.values())}
    rows = [row(each, which) for each in whole for which in ("", *each.variants)]
    rows += [row(each) for each in ordered if not each.whole and each.rule not in rules]
    head = "\n| optimizer | for a chain | equation: θ ← θ - ηd | paper | state |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n\n"


def exports(package: ModuleType, names: dict[str, str]) -> str:
    """Imports that editors and type checkers see, from names to the modules that define them."""
    folder = f"{package.__name__}."
    ordered = sorted(names.items(), key=lambda each: (each[1], each[0].lower()))
    lines = [
        f"from .{module.removeprefix(folder)} import {name} as {name}\n" for name, module in ordered
    ]
    return "".join([*lines, "\n"])


def rules() -> dict[str, str]:
    """All rules of the families."""
    modules = {sys.modules[each.factory.__module__] for each in CATALOGUE.values()}
    return {
        name: module.__name__
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, aj.Rule)
        and value.__module__ == module.__name__
    }


def outline(state: Any) -> str:
    """The names in a state."""
    if isinstance(state, optax.PartitionState):
        groups = state.inner_states.items()
        return f"PartitionState({', '.join(f'{k}: {outline(x.inner_state)}' for k, x in groups)})"
    if hasattr(state, "_fields"):
        return f"{type(state).__name__}({', '.join(state._fields)})"
    return f"({', '.join(map(outline, state))})"


def layouts() -> dict[str, str]:
    """What the state of each case holds."""
    params = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    return {
        case: outline(jax.eval_shape(factory(**settings).init, params))
        for case, (factory, settings) in CASES.items()
    }


def files() -> dict[Path, str]:
    """The files that are written, and what is to be in them."""
    recorded = json.loads(LAYOUTS.read_text()) if LAYOUTS.exists() else {}
    factories = {each.name: each.factory.__module__ for each in CATALOGUE.values()}
    between = {
        ROOT / ".docs" / "algorithms.md": table(),
        ROOT / "adaptive_jax" / "__init__.py": exports(aj, factories),
        ROOT / "adaptive_jax" / "rules" / "__init__.py": exports(aj.rules, rules()),
    }
    return {
        path: MARKERS.sub(lambda found, new=new: found[1] + new, path.read_text())
        for path, new in between.items()
    } | {
        ROOT / ".docs" / "departures.md": page_of_departures(),
        LAYOUTS: json.dumps(layouts() | recorded, indent=2, sort_keys=True) + "\n",
    }


if __name__ == "__main__":
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")

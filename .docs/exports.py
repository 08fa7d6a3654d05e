"""What the package exports, page by page. There is no list of names to keep: modules have pages.

Optimizers and what is for chains come from the catalogue.
"""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

from adaptive_jax.rules._factory import CATALOGUE

# The title of each page, and the modules whose exports it shows. A module that does not exist is
# passed over.
PAGES = {
    "optimizers": ("Optimizers", []),
    "chains": ("Pieces for chains", []),
    "rules": (
        "Rules and the lift",
        [
            "_core.hyper",
            "_core.mask",
            "_core.rule",
            "_core.context",
            "_core.views",
            "_core.transform",
            "transforms.chain",
            "rules",
        ],
    ),
    "schedules": (
        "Schedules",
        [
            "schedules",
            "_core.schedule",
            "schedules.warmup",
            "schedules.decays",
            "schedules.pieces",
            "schedules.cycles",
            "transforms.layers",
        ],
    ),
    "storage": (
        "Storage, memory and precision",
        [
            "_core.storage.base",
            "_core.storage.blocks",
            "_core.storage.factored",
            "_core.storage.masked",
            "transforms.memory",
            "training.run_memory",
            "training.convert",
            "training.carry",
            "training.carried",
            "transforms.precision",
            "transforms.compensate",
        ],
    ),
    "training": (
        "Training, on one device or many",
        [
            "training.loss_scale",
            "training.state",
            "transforms.evaluate",
            "transforms.shards",
            "training.step",
            "training.loop",
            "training.evaluation",
            "training.callbacks",
            "training.checkpoint.save",
            "training.checkpoint.restore",
            "training.checkpoint.checkpoints",
        ],
    ),
    "estimators": (
        "Estimators of gradients and curvature",
        ["training.estimators", "training.sharpness"],
    ),
    "sweeps": (
        "Sweeps and comparisons",
        [
            "training.search.result",
            "training.search.confirmation",
            "training.search.sweeps",
            "training.search.distributions",
            "training.search.comparison",
            "training.search.compared",
            "training.search.finalists",
            "training.search.differences",
            "training.search.finder",
            "training.search.tuning",
        ],
    ),
    "problems": (
        "Problems",
        [
            "problems",
            "problems.problem",
            "problems.functions",
            "problems.quadratics",
            "problems.data",
            "problems.images",
            "problems.language",
            "problems.policies",
        ],
    ),
    "plotting": (
        "Plots",
        [
            "plotting",
            "plotting.losses",
            "plotting.settings",
            "plotting.landscape",
            "plotting.history",
            "plotting.profile",
            "plotting.budgets",
        ],
    ),
    "wrappers": (
        "Wrappers",
        [
            "transforms.partition",
            "transforms.behind",
            "transforms.mixing",
            "transforms.switching",
            "transforms.skip",
            "transforms.accumulate",
            "transforms.monitor",
        ],
    ),
    "diagnostics": (
        "Diagnostics",
        ["training.check_training", "transforms.diagnose", "transforms.describe"],
    ),
    "torch": (
        "PyTorch",
        [
            "interop.torch",
            "interop.torch.optimizers",
            "interop.torch.weights",
            "interop.torch.runs",
        ],
    ),
    "optax": ("optax", ["interop.optax", "interop.optax.states"]),
    "keras": ("Keras", ["interop.keras", "interop.keras.optimizers", "interop.keras.runs"]),
    "maths": ("Maths", ["maths"]),
    "testing": ("Testing", ["testing"]),
}
# Modules that users reach by name: all that is public in them is shown, below their own docstring. Of
# a file in one of them that PAGES lists, that which the module hands on, in the order of the file.
NAMESPACES = (
    "rules", "schedules", "problems", "plotting", "interop.torch", "interop.optax", "interop.keras",
    "maths", "testing",
)  # fmt: skip


@dataclass(frozen=True)
class Export:
    """What a page shows: its full name, itself, and its docstring."""

    name: str
    value: Any
    docstring: str

    @property
    def short_name(self) -> str:
        """The name without the module."""
        return self.name.rpartition(".")[2]

    @property
    def members(self) -> list[str]:
        """The public methods and properties of a class that have a docstring of their own."""
        kinds = (property, classmethod, staticmethod)
        return [
            name
            for name, member in (vars(self.value).items() if inspect.isclass(self.value) else ())
            if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, kinds))
            if member.__doc__
        ]

    @property
    def directive(self) -> str:
        """What has Sphinx show it."""
        if inspect.isclass(self.value):
            members = f"\n   :members: {', '.join(self.members)}" if self.members else ""
            return f".. autoclass:: {self.name}{members}"
        if self.docstring == (inspect.getdoc(self.value) or ""):
            return f".. autofunction:: {self.name}"
        return f".. autodata:: {self.name}\n   :no-value:"


def exports(package: ModuleType) -> dict[str, list[Export]]:
    """From each page to what it shows, in the order of the source.

    Raises:
      LookupError: for an export that is on no page.
    """
    public = {name: value for name, value in vars(package).items() if not name.startswith("_")}
    missing = {name for name, value in public.items() if not isinstance(value, ModuleType)}
    shown: dict[str, list[Export]] = {page: [] for page in PAGES}
    for name, algorithm in sorted(CATALOGUE.items(), key=lambda item: item[1].year):
        if public.get(name) is algorithm.factory:
            missing.discard(name)
            export = Export(f"{package.__name__}.{name}", public[name], public[name].__doc__)
            shown["optimizers" if algorithm.whole else "chains"].append(export)
    for page, (_, modules) in PAGES.items():
        for module in modules:
            of_page = page if page in NAMESPACES else ""
            namespace = next(
                (each for each in NAMESPACES if f"{module}.".startswith(f"{each}.")), of_page
            )
            handed_on = sys.modules.get(f"{package.__name__}.{namespace}")
            for name, value, docstring in _defined(f"{package.__name__}.{module}"):
                if public.get(name) is value:
                    missing.discard(name)
                    full_name = f"{package.__name__}.{name}"
                elif namespace and getattr(handed_on, name, None) is value:
                    full_name = f"{package.__name__}.{namespace}.{name}"
                else:
                    continue
                where = "chains" if name == "chain" else page
                shown[where].append(Export(full_name, value, docstring))
    missing |= _modules_without_page(package)
    if missing:
        raise LookupError(
            f"{', '.join(sorted(missing))}: exported by {package.__name__}, and on no page of the "
            "documentation. Add the module that defines it to PAGES in .docs/exports.py."
        )
    return {page: found for page, found in shown.items() if found}


def _defined(module: str) -> list[tuple[str, Any, str]]:
    """What is public in a module and defined there, with its docstring.

    What is defined in a file of it counts as well, unless that file is itself in PAGES.
    """
    if module not in sys.modules:
        return []
    # A constant's docstring is the string below it, which is in the source alone.
    constants = ModuleAnalyzer.for_module(module).find_attr_docs()
    package = module.partition(".")[0]
    listed = {f"{package}.{each}" for _, modules in PAGES.values() for each in modules}
    defined = []
    for name, value in vars(sys.modules[module]).items():
        home = getattr(value, "__module__", None) or ""
        if ("", name) in constants:
            defined.append((name, value, "\n".join(constants["", name]).strip()))
        elif name.startswith("_") or home in listed - {module}:
            continue
        elif f"{home}.".startswith(f"{module}."):
            defined.append((name, value, inspect.getdoc(value) or ""))
    return defined


def _modules_without_page(package: ModuleType, prefix: str = "") -> set[str]:
    """The public modules of a package that no page shows, and of packages in it that users reach."""
    listed = {module for _, modules in PAGES.values() for module in modules}
    missing = set()
    for name, value in vars(package).items():
        if not isinstance(value, ModuleType) or value.__name__ != f"{package.__name__}.{name}":
            continue
        if name.startswith("_") or f"{prefix}{name}" in listed:
            continue
        shown = {module for module in listed if module.startswith(f"{prefix}{name}.")}
        if shown and shown.isdisjoint(NAMESPACES):
            continue  # A room: what users reach of it is exported by the package.
        within = _modules_without_page(value, f"{prefix}{name}.")
        missing |= within if hasattr(value, "__path__") else {f"{prefix}{name}"}
    return missing


def write_pages(shown: dict[str, list[Export]], directory: Path) -> None:
    """Writes a page for each group of exports, and one that lists them all."""
    index = ["# API", "", "What `adaptive_jax`, imported as `aj`, exports."]
    pages = {}
    for page, found in shown.items():
        title, modules = PAGES[page]
        table = ["| name | what it is |", "|---|---|", *(_row(export) for export in found)]
        index += ["", f"## {title}", "", *table]
        content = [f"# {title}", ""]
        for module in modules:
            if module in NAMESPACES:
                content += ["```{eval-rst}", f".. automodule:: adaptive_jax.{module}", "```", ""]
        content += [*table, "", "```{eval-rst}"]
        content += [line for export in found for line in (export.directive, "")]
        pages[page] = [*content, "```"]
    contents = ["```{toctree}", ":hidden:", "", *shown, "```"]
    pages["index"] = [*index, "", *contents]
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for page, lines in pages.items():
        path, text = directory / f"{page}.md", "\n".join(lines) + "\n"
        if not path.exists() or path.read_text() != text:  # else Sphinx would read it again
            path.write_text(text)


def _row(export: Export) -> str:
    """A row of a table: the name, which is a link, and the first line of the docstring."""
    summary = export.docstring.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return f"| {{py:obj}}`{export.short_name} <{export.name}>` | {summary} |"

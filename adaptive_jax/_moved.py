"""What version 0.1.0 had elsewhere, for what was pickled and for what imports it from there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]

_PLACES = {
    "_rule": {"_make_state": ("_core.states", "make_state"), "Mask": ("_core.mask", "Selection")},
    "_storage": {
        "Quantized": ("_core.storage.blocks", "Quantized"),
        "Factors": ("_core.storage.factored", "Factors"),
    },
    "checkpoint": {},
    "comparison": {},
    "diagnostics": {"DiagnoseState": ("transforms.diagnose", "DiagnoseState")},
    "distributions": {},
    "memory": {},
    "optimizers": {},
    "precision": {"CompensateState": ("transforms.compensate", "CompensateState")},
    "sweeps": {},
    "wrappers": {
        "SkipNonfiniteState": ("transforms.skip", "SkipNonfiniteState"),
        "SkipState": ("transforms.accumulate", "SkipState"),
    },
}
"""From these modules to the new places of what is not exported by the package."""


_OF_ADAMAX = ("AMSGrad", "AdaMax", "amsgrad", "adamax", "scale_by_amsgrad", "scale_by_adamax")
_FAMILIES = {"rules.adam": dict.fromkeys(_OF_ADAMAX, "rules.adamax")}
"""From modules to what they do not define any more, and where it is now."""


def moved_from(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a family of which some have gone to others."""
    places = _FAMILIES[module.removeprefix(f"{_PACKAGE}.")]

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{_PACKAGE}.{places[name]}"), name)

    return find


class _Moved(ModuleType):
    """A module that is no more: its names are those of the package, or in their new places."""

    def __getattr__(self, name: str) -> Any:
        place = _PLACES[self.__name__.rpartition(".")[2]].get(name)
        if place is not None:
            return getattr(importlib.import_module(f"{_PACKAGE}.{place[0]}"), place[1])
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(sys.modules[_PACKAGE], name)


for _name in _PLACES:
    _module = _Moved(f"{_PACKAGE}.{_name}", "Its names are in adaptive_jax itself.")
    _module.__spec__ = ModuleSpec(_module.__name__, None)
    sys.modules[_module.__name__] = _module

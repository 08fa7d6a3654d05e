"""A pytest plugin that runs optax's own tests with adaptive_jax in optax's place.

`python -m pytest -p optax_substitution ...` loads it before any test module is imported. Every
function that optax and adaptive_jax both export under one name is then replaced by ours wherever a
module of optax holds it, so that optax's tests and the rest of optax find ours. The tests
themselves are the installed ones, unchanged.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import optax
import optax.contrib
import pytest
from packaging.version import Version

import adaptive_jax

NAMESPACES = (optax, optax.contrib)
OUTCOMES = ("passed", "skipped", "failed")  # From best to worst.


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optax_substitution")
    group.addoption("--own-functions", action="store_true", help="replace nothing")
    group.addoption(
        "--optimizers",
        choices=("all", "replaced", "others"),
        default="all",
        help="of cases that name an optimizer, only those with a replaced one, or only the others",
    )
    group.addoption(
        "--compare-versions",
        action="store_true",
        help="let optax compare versions of jax as versions: as strings, 0.10 is older than 0.7, "
        "and tests that need 0.7 skip themselves",
    )
    group.addoption("--outcomes", type=Path, help="JSON file to write: what became of each test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("compare_versions"):
        jax.__version__ = _ComparableVersion(jax.__version__)
    config.pluginmanager.register(Substitution(config), "substitution")


class _ComparableVersion(str):
    __slots__ = ()
    __hash__ = str.__hash__

    def __lt__(self, other: str) -> bool:
        return Version(self) < Version(other)

    def __ge__(self, other: str) -> bool:
        return Version(self) >= Version(other)


class Substitution:
    """Puts our functions into optax; notes which tests called them, and how these tests ended."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.called: set[str] = set()
        self.called_at_import: dict[Path, set[str]] = {}
        self.tests: dict[str, dict[str, Any]] = {}
        self.errors: list[str] = []
        pairs = {} if config.getoption("own_functions") else shared_functions()
        self.substitutes = {name: self.noting(name, *pair) for name, pair in pairs.items()}
        self.places = [
            (module, attribute, self.substitutes[name])
            for name, (theirs, _) in pairs.items()
            for module, attribute in places_of(theirs)
        ]
        for module, attribute, substitute in self.places:
            setattr(module, attribute, substitute)

    def noting(self, name: str, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Any:
        """Ours, noting its calls.

        Arguments show optax's annotations: one of its tests skips the optimizers whose learning
        rate is not annotated with the very type that optax uses.
        """

        @functools.wraps(ours)
        def substitute(*args: Any, **kwargs: Any) -> Any:
            self.called.add(name)
            return ours(*args, **kwargs)

        annotations = {
            parameter.name: parameter.annotation
            for parameter in inspect.signature(theirs).parameters.values()
        }
        signature = inspect.signature(ours)
        substitute.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                parameter.replace(annotation=annotations.get(parameter.name, parameter.annotation))
                for parameter in signature.parameters.values()
            ]
        )
        return substitute

    def pytest_report_header(self) -> str:
        names = ", ".join(sorted(self.substitutes)) or "none"
        return f"functions of optax replaced by those of adaptive_jax: {names}"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = self.config.getoption("optimizers")
        if wanted == "all":
            return
        replaced = self.substitutes or shared_functions()

        def is_wanted(item: pytest.Item) -> bool:
            opt_name = re.search(r"\bopt_name='(\w+)'", label(item))
            other = bool(opt_name) and opt_name[1] not in replaced and is_optax(opt_name[1])
            return other == (wanted == "others")

        left_out = [item for item in items if not is_wanted(item)]
        self.config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_wanted(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        self.called.clear()
        report = yield
        if isinstance(collector, pytest.Module):
            self.called_at_import[collector.path] = set(self.called)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        for module, attribute, substitute in self.places:
            assert getattr(module, attribute) is substitute, (
                f"{module.__name__}.{attribute} is no longer the one of adaptive_jax"
            )
        self.called.clear()
        try:
            return (yield)
        finally:
            called = self.called | self.called_at_import[item.path]
            item.user_properties += [("label", label(item)), ("called", sorted(called))]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Of one test, its setup, call, teardown and subtests each come with a report.
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "why": ""})
        test.update(report.user_properties)
        test["outcome"] = max(test["outcome"], report.outcome, key=OUTCOMES.index)
        if report.outcome != "passed":
            test["why"] += report.longreprtext + "\n"

    def pytest_sessionfinish(self) -> None:
        # Workers of xdist report to the main process.
        is_worker = hasattr(self.config, "workerinput")
        if self.config.getoption("outcomes") and not is_worker:
            report = {
                "library": adaptive_jax.__file__,
                "replaced": sorted(self.substitutes),
                "errors": self.errors,
                "tests": self.tests,
            }
            self.config.getoption("outcomes").write_text(json.dumps(report))


COMPARED_BY_THEMSELVES = frozenset(
    {
        "adabelief", "adafactor", "adamaxw", "adan", "adaptive_grad_clip", "ademamix", "adopt",
        "centralize", "clip_by_block_rms", "cocob", "dadapt_adamw", "dog", "dowg", "ema",
        "fromage", "keep_params_nonnegative", "lamb", "lars", "lookahead", "mechanize", "momo",
        "momo_adam", "muon", "novograd", "optimistic_adam", "optimistic_adam_v2",
        "optimistic_gradient_descent", "polyak_sgd", "prodigy", "rprop", "sam", "scale_by_adan",
        "scale_by_ademamix", "scale_by_adopt", "scale_by_belief", "scale_by_cocob",
        "scale_by_factored_rms", "scale_by_muon", "scale_by_novograd",
        "scale_by_optimistic_gradient", "scale_by_param_block_rms", "scale_by_polyak",
        "scale_by_rprop", "scale_by_sign", "scale_by_simplified_ademamix", "scale_by_sm3",
        "scale_by_trust_ratio", "scale_by_yogi", "schedule_free", "schedule_free_adamw",
        "schedule_free_sgd", "sign_sgd", "signum", "simplified_ademamix", "sm3", "sophia",
        "yogi",
    }
)  # fmt: skip
"""What is held against papers, and against optax where it follows them: tests/departures shows where not.

optax's tests of these have the numbers of optax, or its states.
"""


def shared_functions() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """What both export under one name: optax's function and ours."""

    def is_function(value: Any) -> bool:
        return callable(value) and not inspect.isclass(value)

    return {
        name: (theirs, ours)
        for namespace in NAMESPACES
        for name, ours in vars(adaptive_jax).items()
        if not name.startswith("_") and name not in COMPARED_BY_THEMSELVES and is_function(ours)
        if is_function(theirs := getattr(namespace, name, None)) and theirs is not ours
    }


def places_of(function: Callable[..., Any]) -> list[tuple[Any, str]]:
    """Each module of optax that holds the function, and under which name."""
    return [
        (module, attribute)
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "optax"
        for attribute, value in vars(module).items()
        if value is function
    ]


def is_optax(name: str) -> bool:
    return any(hasattr(namespace, name) for namespace in NAMESPACES)


def label(item: pytest.Item) -> str:
    """`Class::test(argument=value, ...)`; the names that absl gives to cases are only numbered."""
    function = getattr(item, "function", None)
    arguments = getattr(function, "__x_params_repr__", "")
    name = re.sub(r"\d+$", "", item.name) if arguments else item.name
    return f"{item.parent.name}::{name}{arguments}" if item.parent else name

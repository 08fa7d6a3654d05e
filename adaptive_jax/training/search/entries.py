"""What is compared on what, checked: optimizers with their search spaces, and problems."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._core import pytrees
from ...problems import Problem
from .distributions import Distribution, draw
from .studies import Space, number
from .table import plain, shown


def check_optimizers(optimizers: Any) -> None:
    """Raises unless each is a function with a search space for arguments that it has."""
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(
            "optimizers must be a dict from a name to (function, search space), such as "
            '{"Adam": (aj.adam, {"learning_rate": aj.LogUniform(1e-4, 1)})}, '
            f"got {optimizers!r:.200}."
        )
    for name, entry in optimizers.items():
        if (
            not isinstance(entry, (tuple, list))
            or len(entry) != 2
            or not callable(entry[0])
            or not isinstance(entry[1], Mapping)
        ):
            raise TypeError(
                f"optimizers[{name!r}] must be (function, search space), such as (aj.adam, "
                f'{{"learning_rate": aj.LogUniform(1e-4, 1)}}), got {entry!r:.200}.'
            )
        factory, space = entry
        try:
            inspect.signature(factory).bind_partial(**space)  # what is unknown is said first
            inspect.signature(factory).bind(**space)
        except TypeError as error:
            parameters = ", ".join(inspect.signature(factory).parameters)
            raise ValueError(
                f"the search space of {name!r} does not fit its function, which takes {parameters}: "
                f"{error}."
            ) from None


def check_problems(problems: Sequence[Any]) -> None:
    """Raises unless all are problems whose functions go together, of different names."""
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(
                f"{problem!r:.200} is no problem: give one of aj.problems, such as "
                "aj.problems.digits(), or an aj.problems.Problem."
            )
    names = [problem.name for problem in problems]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"problems must be one or more, of different names, got {names}: rename one, "
            'dataclasses.replace(problem, name="…").'
        )
    for problem in problems:
        _check_functions(problem)


def _check_functions(problem: Problem) -> None:
    """Raises a ValueError if the functions of a problem do not go together."""
    asked, key = "init(key)", jax.eval_shape(lambda: jax.random.key(0))
    try:
        params = jax.eval_shape(problem.init, key)
        asked = "loss(params, key)"
        results = {asked: jax.eval_shape(problem.loss, params, key)}
        asked = "evaluate(params)"
        results[asked] = jax.eval_shape(problem.evaluate, params)
        asked = "evaluate(params)" if problem.test is None else "test(params)"
        results[asked] = jax.eval_shape(problem.reported, params)
    except Exception as error:
        raise ValueError(
            f"{asked} of the problem {problem.name!r} fails: {type(error).__name__}: {error}"
        ) from error
    for asked, result in results.items():
        if getattr(result, "shape", None) != ():
            raise ValueError(
                f"{asked} of the problem {problem.name!r} must give a number, an array of shape (), and "
                f"gives {jax.tree.map(pytrees.describe, result)}."
            )


def space_of(
    name: str,
    factory: Callable[..., Any],
    space: Mapping[str, Any],
    budget: int,
    seed: int,
    problem: str,
    studies: Sequence[int],
) -> Space:
    """The settings to try, each made once into an optimizer: what it refuses is said before a run.

    Each study, problem and optimizer has draws of its own. The order of the axes does not matter, nor
    does that of the optimizers.
    """
    drawn = {key: space[key] for key in sorted(space) if isinstance(space[key], Distribution)}
    fixed = {key: space[key] for key in space if key not in drawn}
    if "seed" in space:
        raise ValueError(
            f"'seed' in the search space of {name!r} is what the runs of a comparison are told apart by: "
            "give the function one under another name, lambda learning_rate, noise: …."
        )
    for key, value in fixed.items():
        if isinstance(value, (list, np.ndarray)):
            raise ValueError(
                f"{key}={value!r:.200} in the search space of {name!r} is fixed, and has several values: "
                f"choose between them, aj.Choice({', '.join(map(str, value))})."
            )
    tables: list[dict[str, Any]] = []
    for study in studies:
        table: dict[str, Any] = {}
        if drawn:
            # By places: names may be those of arguments of `draw`.
            every = {f"{place}": each for place, each in enumerate(drawn.values())}
            found = draw(budget, seed=number(seed, study, problem, f"{name}"), **every)
            columns = dict(zip(drawn, found.values(), strict=True))
            table = {key: columns[key] for key in space if key in drawn}
        for i in range(budget if table else 1):
            setting = {key: plain(column[i]) for key, column in table.items()} | fixed
            if table or not tables:
                _check_setting(name, factory, setting)
        tables.append(table)
    return Space(tuple(tables), fixed)


def _check_setting(name: str, factory: Callable[..., Any], setting: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            # A space may reach beyond what is usual: that is what it is searched for.
            warnings.simplefilter("ignore", UserWarning)
            tx = factory(**setting)
    except Exception as error:
        said = ", ".join(f"{key}={shown(value)}" for key, value in setting.items())
        raise ValueError(
            f"{name!r} cannot be made with {said}, of its search space: {error}"
        ) from error
    if not hasattr(tx, "init") or not hasattr(tx, "update"):
        raise TypeError(
            f"the function of {name!r} must make an optimizer, with init and update, and made "
            f"{tx!r:.200}."
        )

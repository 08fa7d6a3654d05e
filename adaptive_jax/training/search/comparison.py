"""Optimizers compared fairly: equally tuned, over many seeds, with what fails counted."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import maths
from ..._core import arguments, pytrees
from ...problems import Problem
from ...transforms.evaluate import eval_params
from ..agreement import check_alike, together
from ..progress import progress_bar
from . import shares
from .distributions import Distribution, draw
from .result import Sweep
from .sweeps import prepare, sweep
from .table import Table, counted, plain, shown

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Finalist:
    """An optimizer on one problem, with the best of its settings.

    setting: that setting; None if each one diverged.
    tuning: the `Sweep` that found it.
    curves: what the problem is judged by, in NumPy, seeds x evaluations.
    steps_to_target: at which step each seed reached the target; inf for never.
    """

    setting: dict[str, Any] | None
    tuning: Sweep
    curves: np.ndarray
    steps_to_target: np.ndarray


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """What `compare` returns.

    finalists: from the name of each problem and each optimizer to its `Finalist`.
    steps: from the name of each problem to the steps at which it was evaluated, from 0.
    targets: from the name of each problem to its target.
    measures: from the name of each problem to what it is judged by.
    seeds: how many runs each finalist had.
    budget: how many settings were tried for each.
    """

    finalists: dict[str, dict[str, Finalist]]
    steps: dict[str, np.ndarray]
    targets: dict[str, float]
    measures: dict[str, str]
    seeds: int
    budget: int

    def table(self) -> Table:
        """One row per problem and optimizer: setting, final value and steps to the target.

        The final value is a mean over the seeds with the confidence interval of Student's t. The steps
        are a median, which counts what never gets there, with an interval from order statistics. Both
        are at 95 % or more; with fewer than six seeds no order statistics are as sure.
        """
        rows = []
        for problem, finalists in self.finalists.items():
            for optimizer, finalist in finalists.items():
                reached = int(np.sum(np.isfinite(finalist.steps_to_target)))
                rows.append(
                    (
                        *([problem] if len(self.finalists) > 1 else []),
                        optimizer,
                        _setting(finalist.setting),
                        _mean_with_interval(finalist.curves[:, -1]),
                        f"{reached} of {self.seeds}",
                        _median_with_interval(finalist.steps_to_target),
                    )
                )
        headings = (
            *(["problem"] if len(self.finalists) > 1 else []),
            "optimizer",
            "best setting",
            "final value (95 %)",
            "reached",
            "steps to target (95 %)",
        )
        targets = ", ".join(f"{name} {shown(value)}" for name, value in self.targets.items())
        caption = (
            f"{counted(self.budget, 'setting')} tried for each, {counted(self.seeds, 'seed')} of the best; "
            f"target: {targets}."
        )
        return Table(headings, tuple(rows), caption)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def plot_curves(self, problem: str | None = None, *, ax: Any = None) -> Any:
        """What a problem is judged by over the steps: a line per optimizer, a band over the seeds.

        problem: its name; None for the only one, or the first.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        name = next(iter(self.finalists)) if problem is None else problem
        if name not in self.finalists:
            raise ValueError(f"problem={problem!r} is none of {list(self.finalists)}.")
        curves = {
            optimizer: finalist.curves for optimizer, finalist in self.finalists[name].items()
        }
        ax = plotting.loss_curves(curves, steps=self.steps[name], ax=ax)
        ax.axhline(self.targets[name], color="0.5", linewidth=0.8, zorder=0)
        ax.set_ylabel(f"{name}: {self.measures[name]}")
        return ax

    def plot_profile(self, *, ax: Any = None) -> Any:
        """The performance profile: the share of runs solved within τ times the steps of the quickest.

        A run is a seed of a problem. One figure for all problems together.

        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        first = next(iter(self.finalists.values()))
        steps = {
            optimizer: np.concatenate(
                [finalists[optimizer].steps_to_target for finalists in self.finalists.values()]
            )
            for optimizer in first
        }
        return plotting.performance_profile(steps, ax=ax)


def compare(
    optimizers: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]],
    problems: Problem | Sequence[Problem],
    budget: int = 32,
    *,
    seeds: int = 10,
    tuning_seeds: int = 3,
    steps: int | None = None,
    target: float | None = None,
    evaluations: int = 100,
    progress: bool | None = None,
) -> Comparison:
    """Tunes every optimizer with the same budget, and runs the best setting of each with many seeds.

    For each problem and optimizer, `budget` settings are drawn from its search space and trained, with
    `tuning_seeds` seeds each. The one with the best mean final value is trained again, with `seeds` other
    seeds: what won by chance does not win again. The same seed means the same first parameters and the
    same batches, for all of them. Everything is one compiled call per optimizer and problem, and one for
    its finalist.

    With several processes all of them call it, with the same arguments, and do a share of each sweep.

    Which optimizer looks best depends on how much each is tuned: Choi et al. 2019,
    https://arxiv.org/abs/1910.05446; Schmidt et al. 2021, https://arxiv.org/abs/2007.01547.

    Args:
      optimizers: from a name to a function that makes an optimizer and its search space, from
        arguments of the function to distributions, or to values that are fixed:
        `{"Adam": (aj.adam, {"learning_rate": aj.LogUniform(1e-4, 1), "b2": 0.99})}`.
      problems: a `Problem`, or several with different names; those of `aj.problems`, or one's own.
      budget: how many settings to try for each optimizer on each problem.
      seeds: how many runs the best setting gets. Ten or more tell something.
      tuning_seeds: how many runs each setting gets.
      steps: how long to train; None for the problem's own number.
      target: the value that counts as reached; None for the problem's own or, where it has none, the
        median final value of the first optimizer that does not diverge.
      evaluations: how often to evaluate, evenly: steps to the target are counted to one of these. What
        is evaluated are the parameters of `aj.eval_params`.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.

    Returns:
      A `Comparison`: `.table()`, `.plot_curves()`, `.plot_profile()`, `.finalists`.

    Raises:
      TypeError, ValueError: before anything is run, for what is no function with a search space, an
        argument that the function does not have, a setting that it refuses, a problem that cannot be
        traced, problems of one name, and numbers that are none. With several processes, for what is not
        the same in all of them, by its name.
      RuntimeError: for what failed in another process.

    Example:
      >>> import adaptive_jax as aj
      >>> space = {"learning_rate": aj.LogUniform(1e-3, 1.0)}
      >>> problem = aj.problems.quadratic(dimension=4, condition=100.0)
      >>> result = aj.compare(
      ...     {"SGD": (aj.sgd, space), "Adam": (aj.adam, space)}, problem, budget=8, steps=20
      ... )
      >>> list(result.finalists[problem.name])
      ['SGD', 'Adam']
    """
    with together("compare"):
        listed = isinstance(problems, Iterable) and not isinstance(problems, (str, Mapping))
        several: list[Any] = [*problems] if listed else [problems]  # type: ignore[misc]
        _check_optimizers(optimizers)
        _check_problems(several)
        arguments.target(target)
        budget = arguments.whole("budget", budget, 1)
        evaluations = arguments.whole("evaluations", evaluations, 1)
        seeds = arguments.whole("seeds", seeds, 1)
        tuning_seeds = arguments.whole("tuning_seeds", tuning_seeds, 1)
        steps = None if steps is None else arguments.whole("steps", steps, 1)
        spaces = {
            name: _settings(name, factory, space, budget)
            for name, (factory, space) in optimizers.items()
        }
        every: dict[str, np.ndarray] = {}
        for problem in several:
            length = problem.steps if steps is None else steps
            marks = np.linspace(0, length, evaluations + 1).round().astype(np.int32)
            every[problem.name] = np.unique(marks)
        facts: dict[str, str] = {}
        if jax.process_count() > 1:
            counts = {"budget": budget, "seeds": seeds, "tuning_seeds": tuning_seeds}
            facts = {name: f"{value}" for name, value in counts.items()}
            facts |= {"steps": f"{steps}", "target": f"{target}", "evaluations": f"{evaluations}"}
            facts |= _facts(optimizers, several, spaces, every, tuning_seeds)
    check_alike("The comparison", facts)
    finalists: dict[str, dict[str, Finalist]] = {problem.name: {} for problem in several}
    targets: dict[str, float] = {}
    total = len(several) * len(optimizers)
    with progress_bar(progress, total, unit="optimizer") as bar:
        for problem in several:
            marks = every[problem.name]
            found: dict[str, tuple[Any, Sweep, np.ndarray]] = {}
            for name, (factory, _) in optimizers.items():
                run = functools.partial(_train, factory, problem, marks)
                found[name] = _tuned(run, *spaces[name], tuning_seeds, seeds, len(marks))
                bar.update()
            goal = problem.target if target is None else target
            if goal is None:
                finals = [curves[:, -1] for _, _, curves in found.values()]
                medians = [np.median(np.where(np.isfinite(each), each, np.inf)) for each in finals]
                goal = float(next(filter(np.isfinite, medians), -np.inf))
            targets[problem.name] = goal
            finalists[problem.name] = {
                name: Finalist(setting, tuning, curves, _steps_to(goal, curves, marks))
                for name, (setting, tuning, curves) in found.items()
            }
    measures = {problem.name: problem.measure for problem in several}
    return Comparison(finalists, every, targets, measures, seeds, budget)


def _facts(
    optimizers: Mapping[str, Any],
    problems: Sequence[Problem],
    spaces: Mapping[str, Any],
    every: Mapping[str, np.ndarray],
    tuning_seeds: int,
) -> dict[str, str]:
    """What is compared on what, by name, and what is traced of each: the same in all processes.

    every: from the name of each problem to the steps at which it is evaluated.
    """
    found = {"optimizers": shares.fact([*optimizers])}
    for name, (factory, space) in optimizers.items():
        found[f"optimizers[{name!r}]"] = shares.fact((factory, dict(space)))
    found["problems"] = shares.fact([problem.name for problem in problems])
    for problem in problems:
        judged = problem.steps, problem.target, problem.measure
        found[f"steps, target and measure of {problem.name}"] = shares.fact(judged)
        for name, (factory, _) in optimizers.items():
            run = functools.partial(_train, factory, problem, every[problem.name])
            table, fixed = spaces[name]
            prepared = prepare(run, fixed, table=table, seeds=tuning_seeds)
            facts = prepared.facts().items()
            found |= {f"{name} on {problem.name}, {what}": fact for what, fact in facts}
    return found


def _check_optimizers(optimizers: Any) -> None:
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


def _check_problems(problems: Sequence[Any]) -> None:
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


def _settings(
    name: str, factory: Callable[..., Any], space: Mapping[str, Any], budget: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The settings to try, each made once into an optimizer: what it refuses is said before a run."""
    drawn: dict[str, Any] = {
        key: each for key, each in space.items() if isinstance(each, Distribution)
    }
    fixed = {key: space[key] for key in space if key not in drawn}
    for key, value in fixed.items():
        if isinstance(value, (list, np.ndarray)):
            raise ValueError(
                f"{key}={value!r:.200} in the search space of {name!r} is fixed, and has several values: "
                f"choose between them, aj.Choice({', '.join(map(str, value))})."
            )
    table = draw(budget, **drawn) if drawn else None
    for i in range(budget if table else 1):
        setting = {key: plain(column[i]) for key, column in (table or {}).items()} | fixed
        try:
            with warnings.catch_warnings():
                # A space may reach beyond what is usual: that is what it is searched for.
                warnings.simplefilter("ignore", UserWarning)
                tx = factory(**setting)
        except Exception as error:
            raise ValueError(
                f"{name!r} cannot be made with {_setting(setting)}, of its search space: {error}"
            ) from error
        if not hasattr(tx, "init") or not hasattr(tx, "update"):
            raise TypeError(
                f"the function of {name!r} must make an optimizer, with init and update, and made "
                f"{tx!r:.200}."
            )
    return table, {key: [value] for key, value in fixed.items()}


def _train(
    factory: Callable[..., Any], problem: Problem, marks: np.ndarray, /, seed: Any, **setting: Any
) -> jax.Array:
    """The curve of a run: what the problem is judged by, at the steps in marks."""
    first_key, key = jax.random.split(jax.random.key(seed))
    tx = optax.with_extra_args_support(factory(**setting))
    params = problem.init(first_key)

    def step(count: Any, carry: Any) -> Any:
        params, state = carry
        step_key = jax.random.fold_in(key, count)

        def loss(params: Any) -> jax.Array:
            return problem.loss(params, step_key)

        value, gradients = jax.value_and_grad(loss)(params)
        gradients = maths.ascent(gradients)
        extra_args = {"value": value, "grad": gradients, "value_fn": loss}
        updates, state = tx.update(gradients, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    def stretch(carry: Any, ends: Any) -> Any:
        carry = jax.lax.fori_loop(ends[0], ends[1], step, carry)
        return carry, problem.evaluate(eval_params(tx, *carry))

    ends = jnp.stack([jnp.asarray(marks[:-1]), jnp.asarray(marks[1:])], axis=1)
    first = params, tx.init(params)
    _, curve = jax.lax.scan(stretch, first, ends)
    return jnp.concatenate([problem.evaluate(eval_params(tx, *first))[None], curve])


def _tuned(
    run: Callable[..., Any],
    table: dict[str, Any] | None,
    fixed: dict[str, Any],
    tuning_seeds: int,
    seeds: int,
    evaluations: int,
) -> tuple[dict[str, Any] | None, Sweep, np.ndarray]:
    """The best setting, the sweep that found it, and its curves with other seeds."""
    tuning = sweep(run, table=table, seeds=tuning_seeds, progress=False, **fixed)
    if np.all(tuning.diverged):
        return None, tuning, np.full((seeds, evaluations), np.nan)
    setting = tuning.best()
    chosen: dict[str, Any] = {name: [value] for name, value in setting.items()}
    others = range(tuning_seeds, tuning_seeds + seeds)
    final = sweep(run, seeds=list(others), progress=False, **chosen)
    return setting, tuning, final.outputs[0]


def _steps_to(target: float, curves: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The first step at which each curve is no higher than the target; inf for never."""
    reached = curves <= target
    return np.where(reached.any(axis=1), marks[reached.argmax(axis=1)], np.inf)


def _setting(setting: Mapping[str, Any] | None) -> str:
    if setting is None:
        return "every one diverged"
    return ", ".join(f"{name}={shown(value)}" for name, value in setting.items())


def _mean_with_interval(values: np.ndarray) -> str:
    """A mean, with half the width of its confidence interval by Student's t."""
    diverged = int(np.sum(~np.isfinite(values)))
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    if len(values) < 2:
        return shown(float(values[0]))
    from scipy import stats

    wide = values.astype(np.float64)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(wide) - 1) * stats.sem(wide)
    return f"{wide.mean():.4g} ± {half:.2g}"


def _median_with_interval(values: np.ndarray) -> str:
    """A median, with the order statistics between which it lies: no distribution is assumed."""
    ordered = np.sort(values)
    middle = float(np.median(ordered)) if np.isfinite(ordered).sum() * 2 > len(ordered) else np.inf

    def text(value: float) -> str:
        return "never" if np.isinf(value) else f"{value:.0f}"

    low = _order_statistic(len(ordered))
    if low is None or np.all(np.isinf(ordered)):
        return text(middle)
    return f"{text(middle)} ({text(ordered[low])} to {text(ordered[-1 - low])})"


def _order_statistic(count: int) -> int | None:
    """How far from the ends the narrowest interval that holds the median surely enough is."""
    from scipy import stats

    # The median lies outside if as few as `low` values, of even odds, are on one side of it.
    sure = [
        low for low in range(count // 2) if 2 * stats.binom.cdf(low, count, 0.5) <= 1 - CONFIDENCE
    ]
    return max(sure, default=None)

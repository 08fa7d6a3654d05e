"""Optimizers compared fairly: equally tuned, in several studies, with what fails counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._core import arguments
from ...problems import Problem
from ..agreement import check_alike, together
from ..progress import progress_bar
from . import shares
from .compared import Comparison
from .entries import check_optimizers, check_problems, space_of
from .finalists import Finalist
from .result import Sweep
from .studies import FOR_TARGET, Space, best, run_on, seeds_of, train
from .targets import Target, made, steps_to

TUNED_FOR = ("steps", "final")


def compare(
    optimizers: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]],
    problems: Problem | Sequence[Problem],
    budget: int = 32,
    *,
    studies: int = 5,
    seeds: int = 10,
    tuning_seeds: int = 3,
    tune_for: str = "steps",
    steps: int | None = None,
    target: float | None = None,
    hold: int = 1,
    evaluations: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Tunes every optimizer with the same budget and runs the best on, again in each of several studies.

    In a study, for each problem and optimizer, `budget` settings are drawn from its search space and
    trained with `tuning_seeds` seeds each. The best by the median of what is judged is trained again, with
    `seeds` other seeds: what won by chance does not win again. The next study draws other settings and
    other seeds, since most of the luck lies in which settings were drawn: an optimizer that is entered
    twice comes out once quicker and once slower, and only over studies is that seen to be luck.

    In a study, the same seed means the same first parameters and the same batches, for all optimizers.
    Settings are drawn for each by itself, whatever the order of the optimizers and of their axes. All
    studies together are one compiled call per optimizer and problem, and one for their finalists. With
    several processes all of them call it, with the same arguments, and do a share of each sweep.

    Which optimizer looks best depends on how much each is tuned: Choi et al. 2019,
    https://arxiv.org/abs/1910.05446; Schmidt et al. 2021, https://arxiv.org/abs/2007.01547.

    Args:
      optimizers: from a name to a function that makes an optimizer and its search space, from
        arguments of the function to distributions, or to values that are fixed:
        `{"Adam": (aj.adam, {"learning_rate": aj.LogUniform(1e-4, 1), "b2": 0.99})}`.
      problems: a `Problem`, or several with different names; those of `aj.problems`, or one's own.
      budget: how many settings to try for each optimizer on each problem, in each study.
      studies: how often to do everything. Two give intervals, five good ones, six need no assumption
        for them; one gives none, and no conclusion.
      seeds: how many runs the best setting of a study gets. Ten or more tell something.
      tuning_seeds: how many runs each setting gets.
      tune_for: what the best setting is best by: "steps" to the target, or the "final" value; ties by
        the other. The other is then a by-product, and would be better if it were tuned for.
      steps: how long to train; None for the problem's own number.
      target: the value that counts as reached; None for the problem's own or, where it has none, what
        the best optimizer has after three quarters of the steps, in one more study that is for nothing
        else.
      hold: at how many evaluations in a row a run has to be at its target, to have reached it at the
        first of them. More than 1 where the value is noisy. Who is lost later has not reached it.
      evaluations: how often to evaluate, evenly: steps to the target are counted to one of these. What
        is evaluated are the parameters of `aj.eval_params`: by `problem.evaluate` to tune, and by
        `problem.reported` in the runs that are judged, on data that chose nothing where it has some.
      seed: other seeds draw other settings, and run with others; the same one does the same again.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.

    Returns:
      A `Comparison`: `.table()`, `.differences(baseline)`, `.plot_curves()`, `.plot_profile()`,
      `.plot_tuning()`, `.finalists`.

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
      >>> [row.optimizer for row in result.differences("SGD").rows]
      ['Adam']
    """
    with together("compare"):
        listed = isinstance(problems, Iterable) and not isinstance(problems, (str, Mapping))
        several: list[Any] = [*problems] if listed else [problems]  # type: ignore[misc]
        check_optimizers(optimizers)
        check_problems(several)
        arguments.target(target)
        arguments.one_of("tune_for", tune_for, TUNED_FOR)
        counts = {
            "budget": arguments.whole("budget", budget, 1),
            "studies": arguments.whole("studies", studies, 1),
            "seeds": arguments.whole("seeds", seeds, 1),
            "tuning_seeds": arguments.whole("tuning_seeds", tuning_seeds, 1),
            "hold": arguments.whole("hold", hold, 1),
            "evaluations": arguments.whole("evaluations", evaluations, 1),
            "seed": arguments.whole("seed", seed, 0),
        }
        steps = None if steps is None else arguments.whole("steps", steps, 1)
        plans = [
            _Plan(problem, optimizers, steps, target, tune_for, **counts) for problem in several
        ]
        facts: dict[str, str] = {}
        if jax.process_count() > 1:
            facts = {name: f"{value}" for name, value in counts.items()}
            facts |= {"steps": f"{steps}", "target": f"{target}", "tune_for": tune_for}
            facts |= _facts(optimizers, plans)
    check_alike("The comparison", facts)
    with progress_bar(progress, 2 * len(plans) * len(optimizers), unit="sweep") as bar:
        finalists = {plan.problem.name: plan.run(bar.update) for plan in plans}
    return Comparison(
        finalists,
        {plan.problem.name: plan.marks for plan in plans},
        {plan.problem.name: plan.target.value for plan in plans},
        {plan.problem.name: plan.target.source for plan in plans},
        {plan.problem.name: plan.problem.measure for plan in plans},
        counts["studies"],
        counts["seeds"],
        counts["tuning_seeds"],
        counts["budget"],
        tune_for,
        counts["hold"],
        counts["seed"],
    )


class _Plan:
    """All that is to be done on one problem."""

    def __init__(
        self,
        problem: Problem,
        optimizers: Mapping[str, Any],
        steps: int | None,
        target: float | None,
        tune_for: str,
        *,
        budget: int,
        studies: int,
        seeds: int,
        tuning_seeds: int,
        hold: int,
        evaluations: int,
        seed: int,
    ) -> None:
        length = problem.steps if steps is None else steps
        self.problem, self.tune_for, self.hold = problem, tune_for, hold
        self.marks = np.unique(np.linspace(0, length, evaluations + 1).round().astype(np.int32))
        if hold > len(self.marks):
            raise ValueError(
                f"hold={hold} evaluations in a row, and {problem.name!r} is evaluated {len(self.marks)} "
                f"times: give a smaller hold, or more evaluations, up to one for each of {length} steps."
            )
        given = problem.target if target is None else target
        said = "as given" if target is not None else "the problem's own"
        self.target = Target(np.nan if given is None else float(given), said)
        numbers = [*range(studies), *([FOR_TARGET] if given is None else [])]
        every = [seeds_of(seed, each, tuning_seeds + seeds) for each in numbers]
        self.tuning_seeds = np.stack([each[:tuning_seeds] for each in every])
        self.seeds = np.stack([each[tuning_seeds:] for each in every[:studies]])
        self.spaces: dict[str, Space] = {}
        self.runs: dict[str, Callable[..., Any]] = {}
        self.finals: dict[str, Callable[..., Any]] = {}
        for name, (factory, space) in optimizers.items():
            self.spaces[name] = space_of(name, factory, space, budget, seed, problem.name, numbers)
            run = functools.partial(train, factory, problem, self.marks)
            self.runs[name] = functools.partial(run, False)
            # Where both are the same, so is the program.
            self.finals[name] = functools.partial(run, problem.test is not None)

    def run(self, done: Callable[[], Any]) -> dict[str, Finalist]:
        """Every optimizer tuned, the target where it is to be made, and the best settings run on."""
        tunings: dict[str, list[Sweep]] = {}
        for name, space in self.spaces.items():
            tunings[name] = space.tuned(self.runs[name], self.tuning_seeds)
            done()
        if np.isnan(self.target.value):
            apart = {name: each.pop() for name, each in tunings.items()}
            self.target = made(
                {
                    name: each.outputs[best(each, "final", -np.inf, self.marks, 1)]
                    for name, each in apart.items()
                }
            )
        return {name: self._finalist(name, each, done) for name, each in tunings.items()}

    def _finalist(self, name: str, tunings: list[Sweep], done: Callable[[], Any]) -> Finalist:
        goal, marks, hold = self.target.value, self.marks, self.hold
        chosen = tuple(best(each, self.tune_for, goal, marks, hold) for each in tunings)
        curves = run_on(self.finals[name], tunings, chosen, self.seeds)
        done()
        return Finalist(
            tuple(each.setting(row) for each, row in zip(tunings, chosen, strict=True)),
            tuple(tunings),
            chosen,
            self.seeds,
            curves,
            steps_to(goal, curves, marks, hold),
            len(self.spaces[name].tables[0]),
        )


def _facts(optimizers: Mapping[str, Any], plans: Sequence[_Plan]) -> dict[str, str]:
    """What is compared on what, by name, and what is traced of each: the same in all processes."""
    found = {"optimizers": shares.fact([*optimizers])}
    for name, (factory, space) in optimizers.items():
        found[f"optimizers[{name!r}]"] = shares.fact((factory, dict(space)))
    found["problems"] = shares.fact([plan.problem.name for plan in plans])
    for plan in plans:
        problem = plan.problem
        judged = problem.steps, problem.target, problem.measure
        found[f"steps, target and measure of {problem.name}"] = shares.fact(judged)
        for name, space in plan.spaces.items():
            facts = space.prepared(plan.runs[name], plan.tuning_seeds).facts().items()
            found |= {f"{name} on {problem.name}, {what}": fact for what, fact in facts}
    return found

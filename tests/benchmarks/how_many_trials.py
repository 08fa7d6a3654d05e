"""How many trials of AdamW an optimizer is worth that is not tuned: the page "How many trials" of the site.

    python tests/benchmarks/how_many_trials.py              # 8 minutes; goes on where it was stopped
    python tests/benchmarks/how_many_trials.py --page       # writes the page from the JSON alone
    python tests/benchmarks/how_many_trials.py --quick      # seconds: a small run, page and all, elsewhere

A trial is one run of AdamW with a learning rate drawn at random. A study is 64 of them with one seed, and
each of the 64 rates again with ten other seeds, for what it would have been worth. From one study follows
what the best of n trials reaches on average, for every n up to 64, without drawing again: Dodge et al.
2019, https://arxiv.org/abs/1909.03004. What is not tuned runs once with each of the same ten seeds.
Results are written to `how_many_trials.json` after each study and each optimizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

import adaptive_jax as aj

RESULTS = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parents[2] / ".docs"
PAGE, PICTURE = DOCS / "less_to_tune.md", DOCS / "_static" / "how_many_trials.png"
LOW, HIGH = 1e-5, 10.0
TRIALS = (1, 4, 16, 64)
STUDIES, SEEDS = 4, range(100, 110)
RESAMPLED = 2000
BASE = "AdamW"


def falling(peak: Any, steps: int) -> Any:
    """A learning rate that falls linearly to zero over the run."""
    return aj.schedules.linear_schedule(peak, 0.0, steps)


FREE: dict[str, tuple[str, Callable[[int], Any]]] = {
    "Prodigy": ("prodigy()", lambda steps: aj.prodigy()),
    "DoG, averaged": (
        "chain(dog(), polynomial_average())",
        lambda steps: aj.chain(aj.dog(), aj.polynomial_average()),
    ),
    "schedule-free AdamW": ("schedule_free_adamw()", lambda steps: aj.schedule_free_adamw()),
    "AdamW at 0.001": ("adamw(falling(0.001))", lambda steps: aj.adamw(falling(1e-3, steps))),
    "Prodigy, falling": ("prodigy(falling(1))", lambda steps: aj.prodigy(falling(1.0, steps))),
    "D-Adaptation": ("dadapt_adamw()", lambda steps: aj.dadapt_adamw()),
    "L-DoG, averaged": (
        "chain(l_dog(), polynomial_average())",
        lambda steps: aj.chain(aj.l_dog(), aj.polynomial_average()),
    ),
    "DoWG": ("dowg()", lambda steps: aj.dowg()),
    "COCOB": ("cocob()", lambda steps: aj.cocob()),
    "Mechanic": ("mechanize(adamw(1.0))", lambda steps: aj.mechanize(aj.adamw(1.0))),
    "Mechanic, falling": (
        "mechanize(adamw(falling(1)))",
        lambda steps: aj.mechanize(aj.adamw(falling(1.0, steps))),
    ),
    "MoMo-Adam": ("momo_adam()", lambda steps: aj.momo_adam()),
    "SPS": ("sps()", lambda steps: aj.sps()),
}
"""From what is not tuned to its code, for the page, and to a function of the steps that makes it."""


def problems() -> list[aj.problems.Problem]:
    """The problems, small enough to train thousands of times on a CPU."""
    text = aj.problems.language_model(layers=1, width=32, length=8, batch=8)
    return [
        dataclasses.replace(aj.problems.quadratic(noise=0.1), steps=1000),
        dataclasses.replace(aj.problems.logistic_regression(), steps=1000),
        dataclasses.replace(aj.problems.matrix_regression(noise=0.03), steps=500),
        aj.problems.digits(hidden=16),
        dataclasses.replace(text, steps=200),
    ]


def trained(
    problem: aj.problems.Problem,
    make: Callable[..., Any],
    seeds: Sequence[int],
    table: dict[str, Any] | None = None,
) -> np.ndarray:
    """What the problem is judged by after the last step: settings x seeds, in one compiled call."""

    def start(seed: Any, **setting: Any) -> aj.TrainState:
        first_key, key = jax.random.split(jax.random.key(seed))
        return aj.TrainState.create(problem.init(first_key), make(**setting), rng=key)

    def start_at(learning_rate: Any, seed: Any) -> aj.TrainState:
        return start(seed, learning_rate=learning_rate)

    step = aj.train_step(lambda params, batch, rng: problem.loss(params, rng))
    found = aj.sweep(
        start if table is None else start_at,
        table=table,
        seeds=list(seeds),
        step=step,
        batches=np.arange(problem.steps),  # The batch itself is drawn by the problem.
        evaluate=problem.evaluate,
        progress=False,
    )
    return found.objective


def study(problem: aj.problems.Problem, number: int, seeds: Sequence[int]) -> dict[str, Any]:
    """One study of AdamW: rates, what they reach with the seed that chooses, and with the others."""
    space = {"learning_rate": aj.LogUniform(LOW, HIGH)}
    table = aj.draw(max(TRIALS), seed=number, method="random", **space)

    def make(learning_rate: Any) -> Any:
        return aj.adamw(falling(learning_rate, problem.steps))

    finals = trained(problem, make, [number, *seeds], table)
    return {
        "learning_rates": numbers(table["learning_rate"]),
        "chosen_by": numbers(finals[:, 0]),
        "finals": [numbers(row) for row in finals[:, 1:]],
    }


def numbers(values: Any) -> list[float]:
    """For the file: five digits."""
    return [float(f"{value:.5g}") for value in np.asarray(values, np.float64)]


def first_values(problem: aj.problems.Problem, seeds: Sequence[int]) -> list[float]:
    """What the problem is judged by before the first step."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(np.array(seeds))
    return numbers(jax.jit(jax.vmap(lambda key: problem.evaluate(problem.init(key))))(keys))


# What follows from the numbers.


def probabilities(size: int) -> np.ndarray:
    """That the kth best of all is the best of n, drawn without putting back: n from 1 x k from 1."""
    return np.array(
        [
            [math.comb(size - k, n - 1) / math.comb(size, n) for k in range(1, size + 1)]
            for n in range(1, size + 1)
        ]
    )


def kept(finals: Any, first: Any) -> np.ndarray:
    """Final values, of which none is worse than not to train: what diverged is as good as that."""
    return np.fmin(np.asarray(finals, np.float64), np.asarray(first, np.float64))


def judged(of: dict[str, Any]) -> np.ndarray:
    """What each trial is worth, studies x trials from the one that looked best x seeds."""
    return np.stack(
        [
            kept(each["finals"], of["first"])[
                np.argsort(np.nan_to_num(each["chosen_by"], nan=np.inf), kind="stable")
            ]
            for each in of["studies"]
        ]
    )


def expected(of: dict[str, Any]) -> np.ndarray:
    """What the best of n trials reaches on average: studies x n from 1 x seeds."""
    values = judged(of)
    return np.einsum("nk,skj->snj", probabilities(values.shape[1]), values)


def median(of: dict[str, Any]) -> np.ndarray:
    """What the best of n trials reaches in half of all cases, over draws, studies and seeds: n from 1."""
    values = judged(of)
    studies, trials, seeds = values.shape
    shares = probabilities(trials) / (studies * seeds)
    order = np.argsort(values, axis=None, kind="stable")
    which = np.unravel_index(order, values.shape)[1]
    places = np.argmax(np.cumsum(shares[:, which], axis=1) >= 0.5 - 1e-9, axis=1)
    return values.ravel()[order][places]


def worth(value: float, curve: np.ndarray) -> float:
    """At how many trials a curve is as low as a value: 0 for less than one, infinite for never.

    Between two numbers of trials it is interpolated in their logarithm.
    """
    as_low = np.flatnonzero(curve <= value)
    if not len(as_low):
        return math.inf
    n = int(as_low[0])  # The curve has n + 1 trials there.
    if n == 0:
        return 0.0 if curve[0] < value else 1.0
    share = (curve[n - 1] - value) / (curve[n - 1] - curve[n])
    return float(n * ((n + 1) / n) ** share)


def middle(values: Any, share: float = 0.5) -> float:
    """A quantile that is one of the values: between 0 and infinity nothing is interpolated."""
    return float(np.quantile(np.asarray(values), share, method="inverted_cdf"))


@dataclasses.dataclass(frozen=True)
class Worth:
    """How many trials by the mean, its 95 % interval, and by the median."""

    mean: float
    low: float
    high: float
    median: float


def resampled(of: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Studies and seeds drawn with putting back, the same for all optimizers of a problem."""
    random = np.random.default_rng(0)
    studies, seeds = len(of["studies"]), len(of["first"])
    return (
        random.integers(studies, size=(RESAMPLED, studies)),
        random.integers(seeds, size=(RESAMPLED, seeds)),
    )


def curves_of(of: dict[str, Any]) -> np.ndarray:
    """The expected curve, again for each resampling: resampled x n from 1."""
    every = expected(of)
    studies, seeds = resampled(of)
    return np.stack([every[s].mean(0)[:, j].mean(1) for s, j in zip(studies, seeds, strict=True)])


def worths(of: dict[str, Any]) -> dict[str, Worth]:
    """Of everything on one problem that is not tuned."""
    curve, halves, again = expected(of).mean((0, 2)), median(of), curves_of(of)
    _, seeds = resampled(of)
    found = {}
    for name, finals in of["free"].items():
        values = kept(finals, of["first"])
        drawn = [worth(values[j].mean(), each) for j, each in zip(seeds, again, strict=True)]
        found[name] = Worth(
            worth(float(values.mean()), curve),
            middle(drawn, 0.025),
            middle(drawn, 0.975),
            worth(float(np.median(values)), halves),
        )
    return found


# The page.


def trials(value: float) -> str:
    """A number of trials, with its ends."""
    if value < 1:
        return "<1"
    if np.isinf(value):
        return f">{max(TRIALS)}"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def with_interval(found: Worth) -> str:
    low, high = trials(found.low), trials(found.high)
    return trials(found.mean) if low == high else f"{trials(found.mean)} ({low} to {high})"


def mean_and_interval(values: np.ndarray) -> str:
    """The mean of the seeds with its 95 % interval, of Student's t, to the second digit of that."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    if not half > 0:
        return f"{np.mean(values):.3g}"
    places = max(0, 1 - int(np.floor(np.log10(half))))
    return f"{np.mean(values):.{places}f} ± {half:.{places}f}"


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def complete(every: dict[str, Any]) -> dict[str, dict[str, Worth]]:
    """From each optimizer that ran on all problems to what it is worth on each, the best first."""
    found = {title: worths(of) for title, of in every.items()}
    names = [name for name in FREE if all(name in each for each in found.values())]
    by_name = {name: {title: each[name] for title, each in found.items()} for name in names}

    def rank(name: str) -> tuple[float, ...]:
        values = [each.mean for each in by_name[name].values()]
        return -middle(values), -float(np.mean(np.log(np.clip(values, 0.5, 2 * max(TRIALS)))))

    return {name: by_name[name] for name in sorted(names, key=rank)}


def page(every: dict[str, Any]) -> str:
    """The page, of what was measured alone."""
    ranked = complete(every)
    first = next(iter(every.values()))
    studies, seeds = len(first["studies"]), len(first["first"])
    lines = [
        "# How many trials is it worth?",
        "",
        "<!-- Written by tests/benchmarks/how_many_trials.py --page -->",
        "",
        "Optimizers without a learning rate, or with a default that is left alone, beside an AdamW that is "
        "tuned: with 1, 4, 16 and 64 trials. An optimizer is *worth n trials* where it ends as low as the "
        "best of n trials of AdamW does on average.",
        "",
        "![How many trials each is worth](_static/how_many_trials.png)",
        "",
        "A dot is a problem, the line through it its 95 % interval; the mark across is the middle of "
        "the problems.",
        "",
        *in_words(ranked, len(every)),
        "",
    ]
    rows = [
        [
            name,
            trials(middle([each.mean for each in of.values()])),
            *(with_interval(of[title]) for title in every),
        ]
        for name, of in ranked.items()
    ]
    lines += table(["not tuned", "in the middle", *every], rows)
    lines += [
        "## What was run",
        "",
        f"- **AdamW**: {studies} studies of {max(TRIALS)} learning rates for each problem, drawn from "
        f"{LOW:.5f} to {HIGH:g}, each order of magnitude as likely. The rate falls "
        "linearly to zero over the run. Nothing else is tuned: β₁, β₂, ε and the weight decay are "
        f"`aj.adamw`'s defaults. A wider range makes a trial worth less, a narrower one more.",
        "- **A trial** is one run. The best of n is chosen by its final value with one seed, and judged "
        f"by the mean over {seeds} other seeds, so that luck does not count. Averages are over all ways "
        f"to draw n of a study's {max(TRIALS)} trials "
        "([Dodge et al. 2019](https://arxiv.org/abs/1909.03004)), and over the studies.",
        "- **What is not tuned** runs with the same seeds, from the same first parameters and with the "
        "same batches, and is judged at the parameters to evaluate with. *Falling* is the schedule that "
        "AdamW has. SPS and MoMo-Adam are told, by default, that no loss is below 0. AdamW at 0.001 is "
        "there as a control: a guess.",
        "- A run that ends worse than it began counts as if it had not been trained, for all.",
        f"- **Intervals** are at 95 %: {RESAMPLED} times, studies and seeds are drawn again. {studies} "
        "studies are few, so they are rather too narrow. What lies in an interval is within noise.",
        "- **By the mean**, as above, trials that fail count against few trials. *By the median*, the last "
        "column below, they do not, as long as they are fewer than half.",
        "- The problems are small enough for a CPU and the runs short: methods that first have to find "
        "their step size pay for it here more than in a long run.",
        "",
    ]
    lines += table(["not tuned", "code"], [[name, f"`{FREE[name][0]}`"] for name in ranked])
    for title, of in every.items():
        lines += for_problem(title, of, ranked)
    return "\n".join(lines).rstrip() + "\n"


def in_words(ranked: dict[str, dict[str, Worth]], count: int) -> list[str]:
    """What the table says, and how much of it is within noise."""
    middles = {name: middle([each.mean for each in of.values()]) for name, of in ranked.items()}
    best = [name for name in middles if middles[name] == max(middles.values())]
    least = [name for name, value in middles.items() if value < 1]
    every = [each for of in ranked.values() for each in of.values()]
    wide = sum(each.high > 4 * max(each.low, 0.5) for each in every)
    mixed = sum(
        min(each.mean for each in of.values()) < 1 and max(each.mean for each in of.values()) > 16
        for of in ranked.values()
    )
    said = (
        f"In the middle of the {count} problems, {' and '.join(best)} "
        f"{'is' if len(best) == 1 else 'are'} worth {trials(max(middles.values()))} trials; "
        + (f"less than one: {'; '.join(least)}. " if least else "none is worth less than one. ")
        + f"On one problem less than one trial and on another more than 16: {mixed} of {len(ranked)}. "
        f"Intervals that span more than a factor of four, and so do not tell one budget from the next: "
        f"{wide} of {len(every)}."
    )
    return [said]


def for_problem(title: str, of: dict[str, Any], ranked: Any) -> list[str]:
    """The section of one problem: AdamW by its budget, and the rest with it, by where they end."""
    found, every, halves = worths(of), expected(of), median(of)
    again = curves_of(of)
    rows = []
    for n in TRIALS:
        low, high = np.quantile(again[:, n - 1], [0.025, 0.975])
        rows.append(
            [
                f"**{BASE}, best of {n}**", every[:, n - 1].mean(),
                f"{every[:, n - 1].mean():.4g} ({low:.4g} to {high:.4g})", f"{halves[n - 1]:.4g}",
                str(n), str(n),
            ]
        )  # fmt: skip
    for name in ranked:
        values = kept(of["free"][name], of["first"])
        rows.append(
            [
                name, values.mean(), mean_and_interval(values), f"{np.median(values):.4g}",
                with_interval(found[name]), trials(found[name].median),
            ]
        )  # fmt: skip
    rows = [[row[0], *row[2:]] for row in sorted(rows, key=lambda row: row[1])]
    titles = ["optimizer", "final value", "median", "trials, by the mean", "by the median"]
    heading = title[0].upper() + title[1:]
    said = (
        f"{of['steps']} steps; {of['measure']}; {np.mean(of['first']):.3g} before the first step."
    )
    return [f"## {heading}", "", said, "", *table(titles, rows)]


def picture(every: dict[str, Any]) -> Any:
    """A row for each optimizer, a dot for each problem: how many trials it is worth."""
    from matplotlib.figure import Figure

    ranked = complete(every)
    ends = (0.5, 2 * max(TRIALS))
    figure = Figure(figsize=(8, 0.42 * len(ranked) + 1.5), layout="constrained")
    ax = figure.subplots()
    spread = np.linspace(-0.26, 0.26, len(every))
    for place, (title, offset) in enumerate(zip(every, spread, strict=True)):
        found = [of[title] for of in ranked.values()]
        mean, low, high = (
            np.clip([getattr(each, which) for each in found], *ends)
            for which in ("mean", "low", "high")
        )
        y = np.arange(len(ranked)) + offset
        ax.hlines(y, low, high, color=f"C{place}", linewidth=1, alpha=0.5)
        ax.plot(mean, y, "o", color=f"C{place}", markersize=4.5, label=title)
    for row, of in enumerate(ranked.values()):
        value = np.clip(middle([each.mean for each in of.values()]), *ends)
        ax.vlines(value, row - 0.38, row + 0.38, color="0.15", linewidth=2, zorder=0)
    ax.set_xscale("log", base=2)
    ticks = [ends[0], *TRIALS, ends[1]]
    ax.set_xticks(ticks, ["<1", *map(str, TRIALS), f">{max(TRIALS)}"])
    ax.minorticks_off()
    ax.set(xlim=(0.4, 2.5 * max(TRIALS)), xlabel=f"trials of {BASE} that end as low on average")
    ax.set_yticks(range(len(ranked)), list(ranked))
    ax.invert_yaxis()
    ax.axvspan(0.4, 1, color="0.93", zorder=-1)
    ax.axvspan(max(TRIALS), 2.5 * max(TRIALS), color="0.93", zorder=-1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="0.85", linewidth=0.6)
    ax.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(3, len(every)), frameon=False)
    return figure


# The run.


def results(path: Path = RESULTS) -> dict[str, Any]:
    """What is written already."""
    return json.loads(path.read_text()) if path.exists() else {}


def run(
    several: Sequence[aj.problems.Problem],
    names: Sequence[str],
    studies: int,
    seeds: Sequence[int],
    path: Path,
) -> None:
    """Everything that is not written yet, each written as it comes."""
    every = results(path)

    def write(title: str, what: str, start: float) -> None:
        every[title]["seconds"] = round(every[title]["seconds"] + time.perf_counter() - start, 1)
        # Whole or not at all: a run that is stopped leaves the file of before.
        path.with_suffix(".part").write_text(json.dumps(every) + "\n")
        path.with_suffix(".part").replace(path)
        print(f"{title}: {what}, {time.perf_counter() - start:.1f} s", flush=True)

    for problem in several:
        of = every.setdefault(
            problem.name,
            {
                "steps": problem.steps, "measure": problem.measure, "seconds": 0.0,
                "first": first_values(problem, seeds), "studies": [], "free": {},
            },
        )  # fmt: skip
        if (of["steps"], len(of["first"])) != (problem.steps, len(seeds)):
            raise SystemExit(
                f"{path} has {problem.name} with {of['steps']} steps and {len(of['first'])} seeds, and it "
                f"is {problem.steps} and {len(seeds)} now: move the file away to measure again."
            )
        for number in range(len(of["studies"]), studies):
            start = time.perf_counter()
            of["studies"].append(study(problem, number, seeds))
            write(problem.name, f"study {number + 1} of {studies}", start)
        for name in names:
            if name in of["free"]:
                continue
            start = time.perf_counter()
            make = functools.partial(FREE[name][1], problem.steps)
            finals = trained(problem, make, seeds)[0]
            of["free"][name] = numbers(finals)
            write(problem.name, f"{name}: {np.mean(finals):.5g}", start)


def write_page(path: Path, page_path: Path, picture_path: Path) -> None:
    every = results(path)
    if not every:
        raise SystemExit(f"there is nothing in {path} yet: run this without --page first.")
    ran = {(len(of["studies"]), *sorted(of["free"])) for of in every.values()}
    if len(ran) > 1:
        raise SystemExit(f"{path} is not finished on every problem: run this without --page again.")
    page_path.write_text(page(every), encoding="utf-8")
    picture_path.parent.mkdir(exist_ok=True)
    picture(every).savefig(picture_path, dpi=120, metadata={"Software": None})
    print(f"{page_path}, {picture_path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    parser.add_argument("--quick", action="store_true", help="a small run with a page, elsewhere")
    parser.add_argument("--only", nargs="+", default=[], help="problems to run")
    arguments = parser.parse_args()
    if arguments.quick:
        folder = Path(tempfile.mkdtemp(prefix="how_many_trials_"))
        few = [dataclasses.replace(each, steps=20) for each in problems()[:2]]
        path = folder / RESULTS.name
        run(few, list(FREE)[:4], 2, SEEDS[:3], path)
        write_page(path, folder / PAGE.name, folder / "_static" / PICTURE.name)
    elif arguments.page:
        write_page(RESULTS, PAGE, PICTURE)
    else:
        asked = [each for each in problems() if not arguments.only or each.name in arguments.only]
        run(asked, list(FREE), STUDIES, SEEDS, RESULTS)


if __name__ == "__main__":
    main()

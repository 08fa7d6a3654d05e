"""What the problems of `aj.problems` can tell: their floor and ceiling, and whether good optimizers differ.

For each problem, several optimizers are tuned in a few studies: independent draws of settings, the best of
which runs again with fresh seeds. Of the four that come out best, the spread between optimizers is set
against that between the studies of one, tuning and seeds together: a problem on which the four differ by no
more than that says nothing about them.

    python tests/benchmarks/problems.py --quick    # those that take seconds
    python tests/benchmarks/problems.py            # all: what is in the file already is not run again

Writes problems.json beside itself, after each problem.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import adaptive_jax as aj

FILE = Path(__file__).with_suffix(".json")
STUDIES, BUDGET, TUNING_SEEDS, SEEDS = 3, 8, 2, 5
RATES = aj.LogUniform(1e-4, 1.0)
OPTIMIZERS = {
    "SGD": lambda rate: aj.sgd(rate),
    "momentum": lambda rate: aj.sgd(rate, momentum=0.9),
    "AdaGrad": lambda rate: aj.adagrad(rate),
    "RMSprop": lambda rate: aj.rmsprop(rate),
    "Adam": lambda rate: aj.adam(rate),
    "Lion": lambda rate: aj.lion(rate),
}
# A function that makes the problem, and the least value there is, where it is known.
QUICK = {
    "quadratic": (aj.problems.quadratic, 0.0),
    "noisy quadratic": (lambda: aj.problems.quadratic(noise=0.1), 0.0),
    "quadratic_deep": (aj.problems.quadratic_deep, 86.87),
    "matrix regression": (aj.problems.matrix_regression, 0.0),
    "logistic regression": (aj.problems.logistic_regression, None),
    "digits": (aj.problems.digits, None),
    "autoencoder": (aj.problems.autoencoder, None),
    "policy gradient": (aj.problems.policy_gradient, 0.0),
}
ALL = QUICK | {
    "convolutional network": (aj.problems.convolutional_network, None),
    "residual network": (aj.problems.residual_network, None),
    "language model": (aj.problems.language_model, None),
}


def run(problem: aj.problems.Problem, make: Any) -> Any:
    """A function from a rate and a seed to what training comes to."""

    def train(learning_rate: Any, seed: Any) -> dict[str, Any]:
        first_key, key = jax.random.split(jax.random.key(seed))
        tx, params = make(learning_rate), problem.init(first_key)

        def step(carry: Any, step_key: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(problem.loss)(params, step_key), state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key, problem.steps)
        (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        values = jax.lax.map(
            problem.evaluate, jax.tree.map(lambda *x: jnp.stack(x), params, trained)
        )
        return {"start": values[0], "final": values[1], "reported": problem.reported(trained)}

    return train


def measured(problem: aj.problems.Problem) -> dict[str, Any]:
    """What each optimizer comes to: finals and what is to be reported, studies x fresh seeds."""
    found: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        train = run(problem, make)
        drawn = [aj.draw(BUDGET, seed=study, learning_rate=RATES) for study in range(STUDIES)]
        rates = np.concatenate([each["learning_rate"] for each in drawn])
        options = {"objective": "final", "progress": False}
        tuning = aj.sweep(train, learning_rate=rates, seeds=TUNING_SEEDS, **options)
        scores = np.where(tuning.diverged > 0, np.inf, tuning.mean).reshape(STUDIES, BUDGET)
        best = rates.reshape(STUDIES, BUDGET)[np.arange(STUDIES), scores.argmin(axis=1)]
        fresh = list(range(TUNING_SEEDS, TUNING_SEEDS + SEEDS))
        # One setting is one row, be it the best of several studies.
        final = aj.sweep(train, learning_rate=best, seeds=fresh, **options)
        found[name] = {
            "rates": best.tolist(),
            "selected": scores.min(axis=1).tolist(),
            "finals": final.objective.tolist(),
            "reported": final.outputs["reported"].tolist(),
            "start": float(np.median(final.outputs["start"])),
        }
    return found


def judged(found: dict[str, Any], known: float | None) -> dict[str, Any]:
    """Whether the best four differ by more than their noise: a study is the unit."""
    finals = {name: np.array(each["finals"], float) for name, each in found.items()}
    finals = {name: each for name, each in finals.items() if np.isfinite(each).all()}
    logarithmic = min(each.min() for each in finals.values()) > 0
    scale = np.log if logarithmic else np.asarray
    by_study = {name: scale(each).mean(axis=1) for name, each in finals.items()}
    four = sorted(by_study, key=lambda name: by_study[name].mean())[:4]
    groups = np.array([by_study[name] for name in four])
    noise = float(np.sqrt(groups.var(axis=1, ddof=1).mean()))
    spread = float(groups.mean(axis=1).std(ddof=1))
    level = np.exp if logarithmic else np.asarray
    values = {name: float(level(by_study[name].mean())) for name in four}
    return {
        "start": float(np.median([each["start"] for each in found.values()])),
        "known": known,
        "lowest": min(float(each.min()) for each in finals.values()),
        "four": values,
        "logarithmic": bool(logarithmic),
        "spread": spread,
        "noise": noise,
        "p": float(stats.f_oneway(*groups).pvalue),
        "diverged": [name for name in found if name not in finals],
    }


def table(results: dict[str, Any]) -> str:
    """A line per problem."""
    lines = [
        f"{'problem':<22}{'start':>8}{'target':>8}{'lowest':>9}{'known':>7}{'spread/noise':>14}{'p':>8}"
        "  the best four, mean of fresh seeds"
    ]
    for name, each in results.items():
        found = each["judged"]
        known = "" if found["known"] is None else f"{found['known']:.4g}"
        target = "" if each["target"] is None else f"{each['target']:.3g}"
        four = ", ".join(f"{name} {value:.3g}" for name, value in found["four"].items())
        ratio = found["spread"] / max(found["noise"], 1e-12)
        lines.append(
            f"{name:<22}{found['start']:>8.3g}{target:>8}{found['lowest']:>9.3g}{known:>7}{ratio:>14.1f}"
            f"{found['p']:>8.1g}  {four}"
        )
    different = [name for name, each in results.items() if each["judged"]["p"] < 0.05]
    lines.append(
        f"{len(different)} of {len(results)} problems tell the best four apart (F test over "
        f"{STUDIES} studies of {BUDGET} settings, p < 0.05)."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only those that take seconds")
    parser.add_argument("--again", action="store_true", help="run what is in the file, too")
    parser.add_argument("--only", nargs="+", choices=list(ALL), help="only these problems")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.file.exists() and not options.again:
        results = json.loads(options.file.read_text())["problems"]
    makers = QUICK if options.quick else ALL
    for name, (make, known) in makers.items():
        if name in results or (options.only and name not in options.only):
            continue
        started, problem = time.process_time(), make()
        found = measured(problem)
        results[name] = {
            "steps": problem.steps,
            "target": problem.target,
            "measure": problem.measure,
            "judged": judged(found, known),
            "optimizers": found,
            "cpu_seconds": round(time.process_time() - started, 1),
        }
        print(name, f"{results[name]['cpu_seconds']} s of CPU", flush=True)
        setup = {
            "studies": STUDIES,
            "settings": BUDGET,
            "tuning_seeds": TUNING_SEEDS,
            "fresh_seeds": SEEDS,
            "rates": repr(RATES),
            "jax": jax.__version__,
            "cores": os.cpu_count(),
        }
        options.file.write_text(json.dumps({"setup": setup, "problems": results}, indent=1) + "\n")
    print(table({name: results[name] for name in ALL if name in results}))


if __name__ == "__main__":
    main()

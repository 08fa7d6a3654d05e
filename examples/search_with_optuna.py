"""Search for Adam's hyperparameters with Optuna, 32 trials in each compiled call.

    pip install -e ".[examples,search]"
    python search_with_optuna.py

Optuna proposes (`ask`), `aj.sweep` trains all proposals at once, and Optuna learns from what came out
(`tell`). The first round compiles; the others reuse its program, since hyperparameters are data. Takes
some seconds on two CPU cores, and prints, up to the last digits,

    round 1: best held-out loss 0.0787 of 32 trials, 0 diverged
    round 2: best held-out loss 0.0663 of 64 trials, 0 diverged
    round 3: best held-out loss 0.0663 of 96 trials, 0 diverged
    round 4: best held-out loss 0.0663 of 128 trials, 0 diverged
    learning_rate = 0.04013
    one_minus_b1 = 0.5218
    one_minus_b2 = 0.00249
    weight_decay = 1.578e-06
    256 runs in 5 seconds
"""

import argparse
import time

import jax
import numpy as np
import optax

import adaptive_jax as aj

try:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState
except ImportError as error:
    message = f'This example needs {error.name}: pip install -e ".[examples,search]"'
    raise SystemExit(message) from error

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1.0, log=True),
    "one_minus_b1": FloatDistribution(0.01, 1.0, log=True),
    "one_minus_b2": FloatDistribution(1e-4, 0.5, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
}


def make_train(problem, steps):
    """A run of Adam on the problem, from its hyperparameters to the loss on held-out data."""

    def train(learning_rate, one_minus_b1, one_minus_b2, weight_decay, seed):
        first_key, key = jax.random.split(jax.random.key(seed))
        tx = aj.adam(
            learning_rate, 1.0 - one_minus_b1, 1.0 - one_minus_b2, weight_decay=weight_decay
        )
        params = problem.init(first_key)

        def step(carry, step_key):
            params, state = carry
            gradients = jax.grad(problem.loss)(params, step_key)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key, steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return problem.evaluate(params)

    return train


def search(train, *, rounds, trials, seeds):
    """An Optuna study of rounds x trials settings, each the mean of some seeds."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Trials that are still running count as bad ones, so that those of a round keep their distance.
    sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for number in range(1, rounds + 1):
        asked = [study.ask(SPACE) for _ in range(trials)]
        table = {name: np.array([trial.params[name] for trial in asked]) for name in SPACE}
        result = aj.sweep(train, table=table, seeds=seeds)
        for trial, loss in zip(asked, result.mean, strict=True):
            if np.isfinite(loss):
                study.tell(trial, float(loss))
            else:
                study.tell(trial, state=TrialState.FAIL)
        failed = len(study.get_trials(states=[TrialState.FAIL]))
        print(
            f"round {number}: best held-out loss {study.best_value:.4f} of "
            f"{len(study.trials)} trials, {failed} diverged"
        )
    return study


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--trials", type=int, default=32, help="in each round")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each trial")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    arguments = parser.parse_args()
    start = time.perf_counter()
    train = make_train(aj.problems.digits(), arguments.steps)
    study = search(train, rounds=arguments.rounds, trials=arguments.trials, seeds=arguments.seeds)
    for name, value in study.best_params.items():
        print(f"{name} = {value:.4g}")
    runs = len(study.trials) * arguments.seeds
    print(f"{runs} runs in {time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()

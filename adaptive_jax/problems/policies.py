"""A policy that learns from sampled episodes, and whose expected return is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import arguments
from .data import normal
from .problem import Problem


@dataclass(frozen=True, eq=False, kw_only=True)
class PolicyGradient(Problem):
    """A `Problem`, made by `policy_gradient`, with the numbers that it is made of.

    Args:
      transitions: the probability of each next state, (states, actions, states), float64.
      rewards: what an action in a state brings on average, (states, actions), float64.
      best_return: the largest expected return of an episode that any policy has, those that know how much
        time is left among them.
      policy: policy(params), the probabilities of the actions, (states, actions).
    """

    transitions: np.ndarray = field(repr=False)
    rewards: np.ndarray = field(repr=False)
    best_return: float = 0.0
    policy: Any = field(repr=False)


def policy_gradient(
    side: int = 5, hidden: int = 16, episodes: int = 4, slip: float = 0.2
) -> PolicyGradient:
    """A walk through a grid, learned from sampled episodes by REINFORCE: very noisy gradients.

        gradient = -mean of Σₜ (Gₜ - bₜ) ∇ log π(aₜ|sₜ) over episodes,   π = softmax(W₂ tanh(W₁x + b₁) + b₂)
        f = best return - expected return of π ≥ 0

    From a corner of the grid to the opposite one, in 4 side steps at most; a step costs 1/(4 side), the
    goal brings 1 and ends the episode. With probability slip a step goes to either side instead; walls hold
    it. x are the row and the column, each one-hot. Gₜ is the sum of r(s, a), the mean of what an action
    brings, from t on; bₜ that of the other episodes on average, which leaves the gradient right on average.
    At the start few walks come near the goal: where none does, the gradient is 0.

    The value of the loss is minus the mean return of the sample, and its derivative the gradient above, at
    the parameters that it is asked at: no line search can use it. f is exact, by going through all states.
    Too large a rate ends in a policy that always does the same, where the gradient vanishes. Williams
    1992, https://doi.org/10.1007/BF00992696; the value and the derivative, Foerster et al. 2018,
    https://arxiv.org/abs/1802.05098; the mean of the others, Kool et al. 2019,
    https://openreview.net/forum?id=r1lgTGL5DE.

    Args:
      side: of the grid, 2 or more.
      hidden: the width of the hidden layer, 1 or more.
      episodes: how many are sampled in a step, 2 or more. Fewer are noisier.
      slip: the probability that a step goes elsewhere, from 0 to 1.

    Returns:
      The problem, a `PolicyGradient`. Its params are a list of two layers {"w": …, "b": …}. evaluate is f.
      The target is for the values that are the defaults.

    Raises:
      ValueError: for sizes below these, and a slip that is no probability.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> problem = aj.problems.policy_gradient()
      >>> params = problem.init(jax.random.key(0))
      >>> print(problem.transitions.shape, f"{problem.best_return:.2f}")
      (25, 4, 25) 0.51
    """
    side = arguments.whole("side", side, 2)
    hidden = arguments.whole("hidden", hidden, 1)
    episodes = arguments.whole("episodes", episodes, 2, hint=" Each is judged by the others.")
    if not (arguments.is_number(slip) and 0 <= slip <= 1):
        raise ValueError(f"slip={slip!r} must be a probability, from 0 to 1.")
    states, horizon = side * side, 4 * side
    transitions, rewards = _grid(side, slip, 1 / horizon)
    best = np.zeros(states)
    for _ in range(horizon):
        best = (rewards + transitions @ best).max(axis=1)
    best_return = float(best[0])
    places = np.arange(states)
    features = np.concatenate([np.eye(side)[places // side], np.eye(side)[places % side]], axis=1)
    features = features.astype(np.float32)
    init = normal(
        [
            {"w": np.full((inputs, outputs), inputs**-0.5), "b": np.zeros(outputs)}
            for inputs, outputs in ((2 * side, hidden), (hidden, 4))
        ]
    )

    def log_policy(params: Any) -> jax.Array:
        first, second = params
        inner = jnp.tanh(jnp.asarray(features) @ first["w"] + first["b"][None])
        return jax.nn.log_softmax(inner @ second["w"] + second["b"][None])

    def policy(params: Any) -> jax.Array:
        return jnp.exp(log_policy(params))

    def evaluate(params: Any) -> jax.Array:
        probabilities = policy(params)
        moved, brought = (jnp.asarray(each, jnp.float32) for each in (transitions, rewards))

        def back(value: jax.Array, _: Any) -> Any:
            return jnp.sum(probabilities * (brought + moved @ value), axis=1), None

        value, _ = jax.lax.scan(back, jnp.zeros(states, jnp.float32), None, length=horizon)
        return best_return - value[0]

    def loss(params: Any, key: jax.Array) -> jax.Array:
        logs = log_policy(params)
        moves = jnp.log(jnp.asarray(transitions, jnp.float32))
        # In units of the cost of a step: whole numbers, so that what is equal differs by no rounding.
        brought = jnp.asarray(rewards * horizon, jnp.float32)

        def step(state: jax.Array, key: jax.Array) -> Any:
            first, second = jax.random.split(key)
            action = jax.random.categorical(first, jax.lax.stop_gradient(logs)[state])
            following = jax.random.categorical(second, moves[state, action])
            return following, (logs[state, action], brought[state, action])

        start = jnp.zeros(episodes, jnp.int32)
        _, (chosen, rewarded) = jax.lax.scan(step, start, jax.random.split(key, horizon))
        returns = jnp.cumsum(rewarded[::-1], axis=0)[::-1]
        above = (episodes * returns - returns.sum(axis=1, keepdims=True)) / (episodes - 1)
        surrogate = -jnp.mean(jnp.sum(above / horizon * chosen, axis=0))
        return surrogate - jax.lax.stop_gradient(surrogate) - jnp.mean(returns[0]) / horizon

    return PolicyGradient(
        name="policy gradient",
        init=init,
        loss=loss,
        evaluate=evaluate,
        steps=200,
        target=0.05,
        measure="regret per episode",
        transitions=transitions,
        rewards=rewards,
        best_return=best_return,
        policy=policy,
    )


def _grid(side: int, slip: float, cost: float) -> tuple[np.ndarray, np.ndarray]:
    """Transitions and mean rewards: each step costs, the last corner brings 1 and holds for nothing."""
    states = side * side
    transitions = np.zeros((states, 4, states))
    ways = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    for state in range(states - 1):
        row, column = divmod(state, side)
        for action in range(4):
            for turn, chance in ((0, 1 - slip), (-1, slip / 2), (1, slip / 2)):
                down, right = ways[(action + turn) % 4]
                to_row = min(max(row + down, 0), side - 1)
                to_column = min(max(column + right, 0), side - 1)
                transitions[state, action, to_row * side + to_column] += chance
    transitions[-1, :, -1] = 1.0
    rewards = transitions[..., -1] - cost
    rewards[-1] = 0.0
    return transitions, rewards

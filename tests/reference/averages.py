"""What several references use."""

from __future__ import annotations

import numpy as np


def at(hyperparameter, step):
    """The value of a hyperparameter in the given step."""
    return hyperparameter if np.ndim(hyperparameter) == 0 else hyperparameter[step - 1]


def square(x):
    return np.abs(x) ** 2


def average(old, new, decay):
    """Exponential moving average: decay · old + (1 - decay) · new.

    The average of ones, started at zero, is the bias correction: 1 - b^t for a constant b and
    1 - b(1)·b(2)···b(t) in general, here without the cancellation in 1 - b^t.
    """
    return decay * old + (1 - decay) * new


def heavy_ball(velocity, increment, momentum, nesterov):
    """One step of momentum: the new velocity, and the distance to go.

    v ← γv + increment. Nesterov goes one step further, γv + increment with the new v: Sutskever et
    al. (2013), eqs. 3-4, in terms of the parameters that their gradient is taken at.
    """
    velocity = momentum * velocity + increment
    return velocity, momentum * velocity + increment if nesterov else velocity

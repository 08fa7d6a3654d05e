"""The optimizers as their papers print them: NumPy, float64, one array, one loop over the steps.

These functions exist to be compared with, so they share no code with the library and prefer the
formula of the paper to speed and to numerical finesse. Each takes

    gradients: array of shape (steps, ...), real or complex, the gradient of every step
    params: array of shape (...), the parameters before the first step

and returns an array of shape (steps, ...): what every step adds to the parameters. Weight decay
sees the parameters as the earlier updates left them.

A hyperparameter is a number or a sequence with one value per step. Steps count from 1. Every weight
decay is the decoupled one of Loshchilov and Hutter (2019): it joins the step, not the gradient. The
square of a complex gradient is |g|².

A family a file, as in adaptive_jax/rules. What a file defines is here by its name; what several use is in
`averages.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import partial


def __getattr__(name):
    raise AttributeError(
        f"tests/reference has no {name}: write it from its paper in the file of its family, with the "
        f"arguments and defaults of aj.{name}, weight_decay among them."
    )


for _file in pkgutil.iter_modules(__path__):
    _family = importlib.import_module(f"{__name__}.{_file.name}")
    globals().update(
        {
            name: value
            for name, value in vars(_family).items()
            if getattr(value, "__module__", None) == _family.__name__ or isinstance(value, partial)
        }
    )

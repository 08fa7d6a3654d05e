"""What is said of a call that is probably not meant: names of other libraries, numbers above 1."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core import hyper
from .._core.arguments import is_number

_ELSEWHERE = {
    "lr": ("learning_rate",),
    "betas": ("b1", "b2"),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "momentum": ("momentum", "b1", "decay"),
    "alpha": ("decay",),
    "rho": ("rho", "decay"),
    "epsilon": ("eps",),
    "weight_decay_mask": ("mask",),
}
"""What PyTorch and Keras call an argument, and what it may be called here."""


_OTHERWISE = {
    "amsgrad": "it is an optimizer of its own, aj.amsgrad(…)",
    "maximize": "turn the sign round behind it, aj.scale_by_learning_rate(…, flip_sign=False)",
    "clipnorm": "clip before it, aj.chain(aj.clip_by_norm(…), …)",
    "global_clipnorm": "clip before it, aj.chain(aj.clip_by_global_norm(…), …)",
    "clipvalue": "clip before it, aj.chain(aj.clip(…), …)",
    "update_interval": "the estimator has it, train_step(…, gradient=aj.hutchinson(every=10))",
    "hessian_diagonal_fn": "an estimator is given to train_step(…, gradient=aj.hutchinson(every=10))",
}
"""What does here what an argument of another library does."""


def refuse_unknown(name: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raises a TypeError for an argument that an optimizer does not have, and says what to write."""
    for argument in given:
        if argument not in names:
            raise TypeError(_unknown(name, names, argument))


def warn_of_large(name: str, given: Mapping[str, Any], takes_any_rate: bool) -> None:
    """Warns of a learning rate or a weight decay above 1, for the caller of an optimizer."""
    for where, rate in [] if takes_any_rate else _above_one("learning_rate", given):
        warnings.warn(
            f"{where}={rate!r} in {name}: whatever the size of the gradients, each step moves "
            "each parameter by about so much. 1e-4 to 1e-1 are usual. If it is meant, give it as an "
            f"array, jnp.float32({rate!r}), and nothing is said.",
            stacklevel=3,
        )
    for where, decay in _above_one("weight_decay", given):
        warnings.warn(
            f"{where}={decay!r} in {name}: each step takes the learning rate times so much of "
            "every parameter away. 1e-4 to 1e-1 are usual. If it is meant, give it as an array, "
            f"jnp.float32({decay!r}), and nothing is said.",
            stacklevel=3,
        )


def _above_one(name: str, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The first number above 1 of a hyperparameter. Arrays are not looked at: they may be tracers."""
    value: Any = given.get(name)
    ones: Iterable[tuple[str, Any]] = (
        [(name, value)] if is_number(value) else hyper.named(name, value)
    )
    return [each for each in ones if is_number(each[1]) and 1 < each[1] < math.inf][:1]


def _unknown(name: str, names: Sequence[str], argument: str) -> str:
    """What to write in place of an argument that an optimizer does not have."""
    here = [each for each in _ELSEWHERE.get(argument, ()) if each in names]
    here = (
        here
        if argument == "betas"
        else here[:1] or difflib.get_close_matches(argument, names, 1, cutoff=0.75)
    )
    said = f"here it is {' and '.join(here)}" if here else f"it takes {', '.join(names)}"
    said = _OTHERWISE.get(argument, said)
    if argument in ("lr", "betas", "alpha", "amsgrad", "maximize"):
        said += ". aj.interop.torch has the optimizers under PyTorch's names"
    elif argument in ("beta_1", "beta_2", "epsilon", "clipnorm", "global_clipnorm", "clipvalue"):
        said += ". aj.interop.keras has the optimizers under Keras's names"
    elif argument == "momentum":
        said += ". aj.interop.torch and aj.interop.keras have the optimizers under their names"
    return f"{name} takes no argument {argument!r}: {said}."

"""Everything exported that makes a transformation, with the settings under which it is tested.

Every property test walks this table: `CATALOGUE` of the package, where optimizers and pieces for chains
enter by themselves, and their settings beyond the defaults, the ports and the wrappers, listed here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax import rules
from adaptive_jax._core.context import Context
from adaptive_jax._core.lifted import Lifted
from adaptive_jax._core.rule import fields
from adaptive_jax._core.transformation import Transformation, data_of
from adaptive_jax._core.wrapper import Wrapper
from adaptive_jax.rules._factory import CATALOGUE as CATALOGUE
from adaptive_jax.transforms.extra_args import asked_for

for _module in pkgutil.iter_modules(rules.__path__, f"{rules.__name__}."):
    importlib.import_module(_module.name)  # A new family is not exported yet.

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.9, "dampening": 0.9},
        {"momentum": 0.9, "dampening": 0.5, "dampen_first": False},
        {
            "learning_rate": optax.linear_schedule(0.1, 0.0, 10),
            "momentum": 0.9,
            "velocity": "steps",
        },
    ],
    "adagrad": [{"initial_accumulator_value": 0.0, "eps_in_sqrt": False, "eps": 0.0}],
    "adadelta": [{"learning_rate": 0.5, "weight_decay": 0.01}],
    "rmsprop": [
        {"eps": 0.0, "eps_in_sqrt": False, "bias_correction": True},
        {"centered": True, "momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "velocity": "gradients"},
    ],
    "adam": [
        {"learning_rate": optax.linear_schedule(0.1, 0.0, 10), "eps": 0.0, "b1": 0.0},
        {"eps_hat": True, "weight_decay": 0.01},
        {"bias_correction": False, "eps_root": 1e-8},
        {"b1": optax.linear_schedule(0.9, 0.5, 10)},
    ],
    "nadam": [{"momentum_decay": 0.004}],
    "amsgrad": [{"maximum_of": "raw", "eps_hat": True, "eps": 0.0}],
    "adamax": [{"eps": 0.0}, {"eps": 0.0, "eps_in_max": False}],
    "radam": [{"eps": 0.0, "eps_hat": True, "b2": 0.9, "weight_decay": 0.01}],
    "adabelief": [{"rectify": True}, {"nesterov": True, "eps": 1e-8, "eps_root": 0.0}],
    "yogi": [{"bias_correction": True, "initial_accumulator_value": 0.01}],
    "adan": [{"proximal": False, "weight_decay": 0.3, "eps_root": 1e-8}],
    "mars": [{"form": "lion"}, {"from_zero": True, "gamma": 0.1}],
    "optimistic_adam": [{"optimism": 0.03, "nesterov": True}],
    "optimistic_adam_v2": [{"alpha": 0.5, "beta": 2.0}],
    "optimistic_gradient_descent": [{"alpha": 0.5, "beta": 2.0}],
    "ademamix": [{"b3_warmup": 150, "alpha_warmup": 100}],
    "simplified_ademamix": [{"alpha": 2.0}],
    "adopt": [{"nesterov": True, "clip_exponent": 0.1}, {"use_clipping": False}],
    "rprop": [{"eta_plus": 1.5, "max_step_size": 1.0, "weight_decay": 0.3}],
    "novograd": [{"b1": 0.95, "b2": 0.98}, {"grad_averaging": True, "eps": 0.0}],
    "sm3": [{"b2": 0.9, "eps": 1e-8}],
    "lion": [{"b1": 0.5, "b2": 0.9, "weight_decay": 0.1}],
    "muon": [
        {"ns_steps": 5, "weight_decay": 0.01},
        {"normuon": True, "ns_coeffs": "polar_express", "scale": "rms", "nesterov": False},
    ],
    "scale_by_lion": [{"mode": "smooth", "smooth_beta": 2.0}, {"mode": "refined"}],
    "schedule_free_sgd": [{"learning_rate": 0.1, "warmup_steps": 4, "weight_decay": 0.1, "r": 1.0}],
    "schedule_free_adamw": [
        {"learning_rate": 0.1, "warmup_steps": 4, "weight_decay": 0.1, "r": 1.0, "b1": 0.5}
    ],
    "prodigy": [
        {"weight_decay": 0.1, "bias_correction": True, "estim_lr0": 1e-2},
        {"safeguard_warmup": True, "growth_rate": 1.5, "beta3": 0.9, "estim_lr_coef": 2.0},
    ],
    "dadapt_adamw": [
        {"weight_decay": 0.1, "bias_correction": True, "growth_rate": 1.5, "estim_lr0": 1e-2}
    ],
    "dog": [{"init_step": ("learning_rate", 0.1), "weight_decay": 0.1}],
    "l_dog": [{"init_step": ("distance", 0.1), "eps": 1e-3}],
    "dowg": [{"init_estim_sq_dist": 0.1, "weight_decay": 0.1}],
    "cocob": [{"learning_rate": 0.5, "weight_decay": 0.1, "alpha": 10.0}],
    "polyak_sgd": [{"scaling": 0.5, "f_min": 0.1, "eps": 0.1, "variant": "sps+"}],
    "sps": [{"max_learning_rate": 10.0, "c": 0.2, "growth_rate": 1.1}],
    "momo": [
        {"weight_decay": 0.1, "adapt_lower_bound": True},
        {"learning_rate": 0.1, "bias_correction": True},
    ],
    "momo_adam": [{"weight_decay": 0.1, "adapt_lower_bound": True, "lower_bound": -1.0}],
    "sgd_hd": [
        {"learning_rate": 0.01, "multiplicative": False, "hypergradient_rate": 1e-4},
        {"hypergradient_rate": 0.1, "weight_decay": 0.1},
    ],
    "adam_hd": [
        {"learning_rate": 0.1, "weight_decay": 0.1},
        {"b1": 0.5, "hypergradient_rate": 0.0, "b1_rate": 0.3},
    ],
    "average": [{"bias_correction": False}, {"warmup": True}],
    "latest_average": [{"count": 2, "every": 2}],
    "ema": [{"debias": False}],
    "adafactor": [
        {"min_dim_size_to_factor": 2, "momentum": 0.9, "weight_decay": 0.01},
        {
            "learning_rate": 0.1,
            "min_dim_size_to_factor": 0,
            "factored_axes": "last",
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "momentum": 0.9,
            "velocity": "gradients",
            "decay_cap": 0.9,
        },
    ],
    "scale_by_factored_rms": [{"min_dim_size_to_factor": 2, "step_offset": 1}],
    "lamb": [{"weight_decay": 0.1, "max_norm": 1.0}],
    "lars": [
        {"weight_decay": 0.1, "nesterov": True},
        {"weight_decay": 0.1, "sum_of_norms": False, "eps": 0.01, "momentum": 0.5},
    ],
    "hyperball": [{"per": "output", "scale_steps": False}, {"radius": 2.0, "learning_rate": 0.1}],
    "clip_per_layer": [{"uniform": False}],
    "adaptive_grad_clip": [{"axis": 0}],
    "add_penalty": [{"l1": 0.1, "l2": 0.1, "group_l1": 0.1, "groups": "rows"}],
    "proximal": [
        {"l1": 0.1, "l2": 0.1, "group_l1": 0.5},
        {"l1": 0.0, "group_l1": 0.5, "groups": "array", "learning_rate": 0.1},
    ],
    "keep_params_in_box": [{"low": -0.5, "high": 0.5}],
    "ftrl": [{"l1": 0.1, "l2": 0.1, "initial_accumulator_value": 0.1, "beta": 0.0}],
    "add_decayed_weights": [
        {"weight_decay": 0.01},
        {"weight_decay": 0.01, "kind": "cautious"},
        {"weight_decay": 0.01, "kind": "independent"},
        {"weight_decay": 0.01, "kind": "proximal", "learning_rate": 0.1},
    ],
    "cautious": [{"normalization": "code"}, {"layerwise": False}],
    "grams": [{"flip_sign": True}],
    "sophia": [{"eps_in_max": False, "eps": 1e-15, "gamma": 0.05}],
    "adahessian": [{"average_axes": ((2, (1,)),), "hessian_power": 0.5, "weight_decay": 0.01}],
    "psgd_kron": [
        {
            "preconditioner_update_probability": 0.5,
            "memory_save_mode": "one_diag",
            "momentum_into_precond_update": False,
        }
    ],
    "soap": [
        {"skip_first": True, "one_sided": True, "weight_decay": None},
        {"kl": True, "refresh_every": 1, "b3": 0.9},
    ],
    "shampoo": [
        {"average": False, "graft": None, "eps_relative": False, "max_size": 2},
        {"kl": True, "graft": "sgd", "refresh_every": 1},
    ],
}
"""Settings beyond the defaults. Those without which there is no call, such as a learning rate, come by
themselves."""

OF_ALL_ARRAYS = {
    "schedule_free_sgd", "schedule_free_adamw", "prodigy", "dadapt_adamw", "dog", "l_dog", "dowg", "cocob",
    "polyak_sgd", "sps", "momo", "momo_adam", "sgd_hd", "adam_hd",
}  # fmt: skip
"""Whole optimizers whose steps are made of all arrays, of where they started, or of a loss, and whose
weight decay is none of -ηλθ. rules/test_parameter_free.py compares them with their references."""

OF_WHOLE_ARRAYS = {"adafactor", "lamb", "lars", "ftrl"}
"""Whole optimizers whose steps are made of whole arrays, and no sum of terms of one size.
rules/test_factored.py and rules/test_regularisation.py compare them with their references."""

ILL_CONDITIONED = (
    "StdDev", "Lion", "Signum", "Prodigy", "DAdaptAdamW", "COCOB", "Mechanic", "MoMo", "MoMoAdam",
    "Ftrl", "FtrlFromZero", "Proximal",
)  # fmt: skip
"""Rules whose direction rounding may change by any amount: the variance ν - μ² of constant gradients, the
sign of a sum, a step size from a sum of both signs, a difference from where the run started, or from where
the parameter is to go."""


def label(name: str, settings: dict[str, Any]) -> str:
    """A readable test id."""
    shown = [f"{key}={getattr(value, '__name__', value)}" for key, value in settings.items()]
    return f"{name}({','.join(shown)})"


CHEAP: dict[str, dict[str, Any]] = {
    **{name: {"ns_steps": 1} for name in ("muon", "scale_by_muon", "scale_by_normuon")},
    **{name: {"memory_save_mode": "all_diag"} for name in ("psgd_kron", "scale_by_psgd_kron")},
}
"""Settings in the place of defaults that take a compiler long, and of which no promise depends."""


def required(name: str) -> dict[str, Any]:
    """Values for the arguments that have no default."""
    values = {"learning_rate": 0.1, "decay": 0.9, "init_step": ("heuristic", 1e-6)}
    parameters = inspect.signature(CATALOGUE[name].factory).parameters.values()
    return {x.name: values.get(x.name, 1.0) for x in parameters if x.default is x.empty}


@dataclass(frozen=True)
class Given(Wrapper):
    """An optimizer that makes up the extra arguments that its rules ask for, where none come.

    The diagonal of a Hessian is |g|: as large as the gradient, and never negative.
    """

    inner: Any

    wraps = {"inner": ""}

    def init(self, params: Any) -> Any:
        return self.inner.init(params)

    def step(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        made = extra_args_of(self.inner, updates) | extra_args
        return self.inner.update(updates, state, params, **made)

    def check(self, state: Any) -> None:
        pass  # Of the one inside, which checks it.

    def states_in(self, state: Any) -> tuple[Any, ...]:
        return (state,)

    def with_states(self, state: Any, new: Any) -> Any:
        return next(iter(new))

    def __repr__(self) -> str:
        return repr(self.inner)


def extra_args_of(tx: Any, gradients: Any) -> dict[str, Any]:
    """The extra arguments that its rules ask for, made of the gradients alone."""
    made = {
        "hessian_diagonal": lambda: jax.tree.map(jax.numpy.abs, gradients),
        "has_hessian_diagonal": lambda: True,
        "value": lambda: 1.0,
    }
    return {name: made[name]() for name in asked_for(tx) if name in made}


def bare(tx: Any) -> Any:
    """The optimizer without what makes up its extra arguments."""
    return tx.data.inner if isinstance(data_of(tx), Given) else tx


def given(algorithm: Any) -> Any:
    """The function that makes an optimizer, which is given what its rule asks for beside gradients."""
    if not {*algorithm.rule.extra_args} & {"hessian_diagonal", "value"}:
        return algorithm.factory

    @functools.wraps(algorithm.factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        return Transformation.of(Given(algorithm.factory(*args, **kwargs)))

    return made


CASES = {
    label(name, settings): (given(algorithm), settings)
    for name, algorithm in CATALOGUE.items()
    for settings in (
        required(name) | CHEAP.get(name, {}) | beyond_the_defaults
        for beyond_the_defaults in [{}, *SETTINGS.get(name, [])]
    )
}
"""From a readable id to the function and its arguments."""

WHOLE_OPTIMIZERS = [name for name, algorithm in CATALOGUE.items() if algorithm.whole]

FIRST = [
    label(name, required(name) | CHEAP.get(name, {}))
    for name, algorithm in CATALOGUE.items()
    if algorithm.whole or algorithm.rule not in {CATALOGUE[x].rule for x in WHOLE_OPTIMIZERS}
]
"""Every rule, once: the other preconditioners for chains are rules of a whole optimizer."""


def how_often(case: str, in_default_run: Collection[str]) -> Any:
    """The mark of a test that the default run has for some: every rule is slow, every variant seldom."""
    if case in in_default_run:
        return ()
    return pytest.mark.slow if case in FIRST else pytest.mark.seldom


def rules_of(tx: Any) -> list[aj.Rule]:
    """The rules that a transformation is made of, those of what is wrapped in it among them."""
    nodes = jax.tree.leaves(tx, is_leaf=lambda x: isinstance(x, aj.Rule))
    return [node for node in nodes if isinstance(node, aj.Rule)]


def sees_matrices(tx: Any) -> bool:
    """Whether a rule in it sees arrays as matrices."""
    return any(rule.matrix for rule in rules_of(tx))


def takes_only_matrices(tx: Any) -> bool:
    """Whether it refuses arrays with one axis or none: no partition gives these to others."""
    is_alone = isinstance(data_of(tx), Lifted)
    return is_alone and any(rule.matrix and not rule.takes_vectors for rule in rules_of(tx))


def kinds_of(tx: Any) -> set[tuple[str, Any]]:
    """What the lift has to know of the rules that a transformation is made of: all that they declare.

    These are the class attributes of a rule, the fields of its slots, and what it uses of its context.
    What is added to `Rule`, `Slot` or `Context` is another kind at once.
    """
    kinds: set[tuple[str, Any]] = set()
    for rule in rules_of(tx):
        declared = {name: getattr(rule, name) for name in aj.Rule.__annotations__}
        kinds |= {(name, kind(value)) for name, value in declared.items()}
        for slot in rule.slots.values():
            kinds |= {(field.name, kind(getattr(slot, field.name))) for field in SLOT_FIELDS}
        methods = [getattr(type(rule), name) for name in dir(type(rule))]
        codes = [method.__code__ for method in methods if inspect.isfunction(method)]
        used = {name for code in codes for name in code.co_names}
        kinds |= {("ctx", name) for name in used & IN_CONTEXT}
        kinds |= {("data", kind(getattr(rule, name))) for name in fields(type(rule)).data}
    return kinds


SLOT_FIELDS = dataclasses.fields(aj.Slot)
IN_CONTEXT = {name for name in (*dir(Context), *Context.__annotations__) if name[0] != "_"}


def kind(value: Any) -> Any:
    """What matters of a declaration: a switch, or whether it is there and how it is given."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value == "param":
        return value
    if isinstance(value, (Mapping, tuple)):
        entries = value.values() if isinstance(value, Mapping) else value
        return tuple(sorted({str(kind(entry)) for entry in entries}))
    return "function" if callable(value) else type(value).__name__


def representatives(cases: Collection[str]) -> list[str]:
    """As few of the cases as have all the kinds of rules that there are."""
    missing = {case: kinds_of(CASES[case][0](**CASES[case][1])) for case in cases}
    chosen = []
    while any(missing.values()):
        best = max(missing, key=lambda case: len(missing[case]))  # The first of them.
        chosen.append(best)
        covered = missing[best]
        missing = {case: kinds - covered for case, kinds in missing.items()}
    return chosen


REPRESENTATIVES = representatives(CASES)
"""What every test of the lift has in the default run; the slow run has all."""

PORTED = {
    label(f"{library}.{name}", settings): (getattr(getattr(aj.interop, library), name), settings)
    for library, names in {
        "torch": {
            "sgd": {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01, "maximize": True},
            "adagrad": {"lr_decay": 0.1},
            "adadelta": {},
            "rmsprop": {"momentum": 0.9, "centered": True},
            "adam": {"amsgrad": True, "weight_decay": 0.01},
            "adamw": {},
            "nadam": {},
            "adamax": {},
            "radam": {},
            "rprop": {},
            "adafactor": {"weight_decay": 0.01},
            "muon": {},
            "asgd": {"weight_decay": 0.01, "lambd": 0.1},
        },
        "keras": {
            "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clipnorm": 1.0},
            "adagrad": {"global_clipnorm": 1.0},
            "adadelta": {},
            "rmsprop": {"momentum": 0.9, "centered": True},
            "adam": {"amsgrad": True},
            "adamw": {},
            "nadam": {},
            "adamax": {},
            "lion": {},
            "adafactor": {"weight_decay": 0.01},
            "lamb": {"weight_decay": 0.01},
            "muon": {},
            "schedule_free_adamw": {"weight_decay": 0.01},
            "ftrl": {"l1_regularization_strength": 1e-3},
        },
    }.items()
    for name, settings in names.items()
}
"""The ports of other libraries' optimizers, made of the same rules."""


def matrices(params: Any) -> Any:
    """A mask of the matrices, and of all with more axes."""
    return jax.tree.map(lambda x: np.ndim(x) > 1, params)


def matrices_and_rest(params: Any) -> Any:
    """The matrices, and the rest."""
    return jax.tree.map(lambda is_matrix: "matrix" if is_matrix else "rest", matrices(params))


WRAPPERS: dict[str, tuple[optax.GradientTransformation, dict[str, str]]] = {
    "skip_nonfinite": (
        aj.skip_nonfinite(aj.adam(0.1), max_consecutive=3),
        {"a gradient that is not finite stays visible": "in the state: the step is not taken"},
    ),
    "multi_steps": (
        aj.multi_steps(aj.adam(0.1), 2),
        {"a gradient that is not finite stays visible": "in the sum, until the second step"},
    ),
    "compensate": (
        aj.compensate(aj.adam(0.1)),
        {
            "its maths is in float32 at least, and an update has its gradient's dtype": (
                "the updates of low-precision parameters are exact, in float32"
            )
        },
    ),
    "diagnose": (aj.diagnose(aj.adam(0.1)), {}),
    "partition": (
        aj.partition({"matrix": aj.adam(0.1), "rest": aj.sgd(0.1, 0.9)}, matrices_and_rest),
        {},
    ),
    "masked": (aj.masked(aj.adam(0.1), matrices), {}),
    "schedule_free": (aj.schedule_free(aj.sgd(0.1), 0.1), {}),
    "mechanize": (aj.mechanize(aj.sgd(1.0)), {}),
    "lookahead": (aj.lookahead(aj.sgd(0.1), 2), {}),
    "monitor": (aj.monitor({"norm": aj.global_norm}), {}),
    "graft": (aj.graft(aj.adam(0.1), aj.sgd(0.1, 0.9)), {}),
    "switch": (aj.switch(aj.adam(0.1), aj.sgd(0.1, 0.9), 1), {}),
    "blend": (aj.blend({"adam": (aj.adam(0.1), 0.5), "sgd": (aj.sgd(0.1), 0.25)}), {}),
}
"""What stands around or beside an optimizer; and the promises that are not meant for it, with why."""


def exported_factories() -> set[str]:
    """The names of everything exported that returns a transformation made of rules."""
    return {
        name
        for name, value in vars(aj).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation == "Transformation"
        and name not in ("chain", "transform")
    }


def exported_ports() -> set[str]:
    """The names of all ports of other libraries' optimizers, as in "torch.adam"."""
    modules = (aj.interop.torch, aj.interop.keras)
    return {
        value.label
        for module in modules
        for value in vars(module).values()
        if hasattr(value, "label")
    }

"""A saved run of `torch.optim`: its state here, and back there."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..._core import arguments
from ..._core.lifted import Lifted
from ...rules import rms
from ...rules.adagrad import AdaGrad
from ...rules.adam import Adam, NAdam, RAdam
from ...rules.adamax import AdaMax, AMSGrad
from ...rules.averaging import AveragedDescent
from ...rules.factored import HeldFactoredRms
from ...rules.momentum import Trace
from ...rules.orthogonal import MuonOfWeights
from ...rules.resilient import Rprop
from .. import _arrays, _match, _state
from .._port import plain
from .optimizers import IMPLEMENTATIONS, adagrad, adamw, muon, sgd
from .weights import imported_torch, match

_MOMENTS = {"mu": _state.Entry("exp_avg"), "nu": _state.Entry("exp_avg_sq")}


_VOCABULARY: _state.Vocabulary = {
    Trace: {"trace": _state.Entry("momentum_buffer")},
    AdaGrad: {"sum_of_squares": _state.Entry("sum")},
    rms.AdaDelta: {"e_g": _state.Entry("square_avg"), "e_x": _state.Entry("acc_delta")},
    rms.Rms: {"nu": _state.Entry("square_avg")},
    rms.StdDev: {"mu": _state.Entry("grad_avg"), "nu": _state.Entry("square_avg")},
    Adam: _MOMENTS,
    RAdam: _MOMENTS,
    NAdam: {**_MOMENTS, "mu_product": _state.Entry("mu_product")},
    AMSGrad: {**_MOMENTS, "nu_max": _state.Entry("max_exp_avg_sq")},
    AdaMax: {"mu": _state.Entry("exp_avg"), "nu": _state.Entry("exp_inf")},
    MuonOfWeights: {"mu": _state.Entry("momentum_buffer")},
    AveragedDescent: {
        "ax": _state.Entry("ax"),
        "eta": _state.Entry("eta"),
        "mu": _state.Entry("mu"),
    },
    HeldFactoredRms: {
        "v_row": _state.Entry("row_var"),
        "v_col": _state.Entry("col_var"),
        "v": _state.Entry("variance"),
    },
    # The last step in the place of the last gradient: only its sign is looked at, on both sides.
    Rprop: {"step_sizes": _state.Entry("step_size"), "prev_updates": _state.Entry("prev")},
}


_CLASSES = {
    "sgd": "SGD", "adagrad": "Adagrad", "adadelta": "Adadelta", "rmsprop": "RMSprop",
    "adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "adamax": "Adamax", "radam": "RAdam",
    "rprop": "Rprop", "adafactor": "Adafactor", "muon": "Muon", "asgd": "ASGD",
}  # fmt: skip


_UNCOUNTED = (sgd, muon)


_NUMBERS = {"step", "mu_product", "eta", "mu"}
"""Entries that are one number, whatever the shape of the parameter."""


_FACTORS = ("row_var", "col_var")


# Options of param_groups that schedulers leave there, and that older versions lack.
_OF_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}


_NEWER = {"maximize", "decoupled_weight_decay"}


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A parameter of a saved optimizer: its number, its group, and what it is called."""

    index: int
    options: Mapping[str, Any]
    name: str
    entries: Mapping[str, Any]


def import_state(
    tx: Any,
    params: Any,
    state_dict: Mapping[str, Any],
    mapping: Any = None,
    *,
    param_labels: Any = None,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> Any:
    """The state of a PyTorch optimizer, as the state of the same optimizer here.

    Args:
      tx: the optimizer of this module that goes on, with the options of the saved one (its `lr` is
        free), alone or in an `aj.chain`. For parameter groups, a mapping from labels to optimizers,
        the first argument of `optax.partition`; groups that differ in `weight_decay` alone are
        one optimizer with a `mask`.
      params: the parameters here; None in the place of a frozen one, which PyTorch's optimizer did
        not get.
      state_dict: `optimizer.state_dict()`, of tensors or arrays.
      mapping: from PyTorch's names to paths here, or to (path, axes): what `match` returns. By default
        the names in the saved groups decide (an optimizer made of `model.named_parameters()` has
        them), or the order, if params is a tree whose leaves have one of their own: a list, a
        tuple, but not a dict.
      param_labels: the second argument of `optax.partition`.
      names: the names of the mapping in the order in which the optimizer got the parameters, group by
        group, where the saved groups have no names. By default it is the order of the mapping, which
        is the model's; several groups need the names.
      step: the number of steps taken, for SGD, which does not save it. A schedule needs it.

    Returns:
      The state that `tx.init(params)`, or `optax.partition(tx, param_labels).init(params)`, has.
      Every array is a copy.

    Raises:
      TypeError, ValueError: for what another optimizer saved, options that differ from tx's, missing
        or unknown entries, wrong shapes, different step counts, NaN, and parameters that cannot be
        told apart, by the names of entry and parameter.

    Example:
      >>> import adaptive_jax as aj, numpy as np
      >>> group = dict(lr=0.1, momentum=0.9, dampening=0, weight_decay=0, nesterov=False, params=[0])
      >>> saved = {"state": {0: {"momentum_buffer": np.ones(2)}}, "param_groups": [group]}
      >>> tx = aj.interop.torch.sgd(lr=0.1, momentum=0.9)
      >>> aj.interop.torch.import_state(tx, [np.zeros(2)], saved)[0]
      TraceState(trace=[Array([1., 1.], dtype=float32)])
    """
    step = None if step is None else arguments.whole("step", step, 0)
    parameters = _parameters(state_dict)
    placed = _place(params, parameters, mapping, names)
    if not isinstance(tx, Mapping):
        return _import(tx, params, placed, step)

    def convert(each: Any, part: Any) -> Any:
        own = {path: placed[path] for path in _arrays.paths(part)}
        return _import(each, part, own, step)

    return _state.partitioned(tx, params, param_labels, convert)


_Placed = dict[str, tuple[_Parameter, tuple[int, ...] | None]]


def _parameters(state_dict: Any) -> list[_Parameter]:
    """The parameters of a saved optimizer in its order."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        got = list(state_dict)[:6] if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise TypeError(
            f"expected optimizer.state_dict(), a dict with 'state' and 'param_groups', got {got}."
        )
    state, parameters = state_dict["state"], []
    for options in state_dict["param_groups"]:
        names = options.get("param_names") or [f"parameter {index}" for index in options["params"]]
        for index, name in zip(options["params"], names, strict=True):
            parameters.append(_Parameter(index, options, name, state.get(index, {})))
    if unknown := set(state) - {each.index for each in parameters}:
        raise ValueError(
            f"state has entries for {sorted(unknown)}, which no group has as parameters."
        )
    return parameters


def _place(
    params: Any, parameters: Sequence[_Parameter], mapping: Any, names: Sequence[str] | None
) -> _Placed:
    """The saved parameter of each path here."""
    named = all("param_names" in each.options for each in parameters)
    by_name = {each.name: each for each in parameters}
    if mapping is not None:
        mapped = _match.checked_mapping(mapping, params)
        if not named:
            order = list(mapped) if names is None else list(names)
            groups = {id(each.options) for each in parameters}
            if names is None and len(groups) > 1:
                raise ValueError(
                    f"the optimizer saved {len(groups)} groups without the names of their parameters: "
                    "give them as names=, in the order in which the optimizer got them. (One made of "
                    "model.named_parameters() saves them itself.)"
                )
            if set(order) != set(mapped) or len(order) != len(parameters):
                raise ValueError(
                    f"the optimizer saved {len(parameters)} parameters, mapping has {len(mapped)} and "
                    f"names {len(order)}: they must be the same. (None in params, in the place of a "
                    "frozen parameter, needs no name.)"
                )
            by_name = {
                name: dataclasses.replace(each, name=name)
                for name, each in zip(order, parameters, strict=True)
            }
        elif set(mapped) != set(by_name):
            different = sorted(set(mapped) ^ set(by_name))
            raise ValueError(
                "mapping and the saved groups do not name the same parameters: "
                f"{_match.listed(different)}."
            )
    elif _match.has_own_order(params):
        mapped = _match.in_order(params, list(by_name))
    else:
        shapes = {name: _shape(each) for name, each in by_name.items()}
        if None in shapes.values():  # Nothing to place.
            return dict.fromkeys(_arrays.paths(params), (parameters[0], None))
        try:
            mapped = match(params, shapes)
        except ValueError as error:
            raise ValueError(
                f"{error} With the model at hand, mapping=aj.interop.torch.match(params, "
                "dict(model.named_parameters())) may find it."
            ) from None
    return {path: (by_name[name], axes) for name, (path, axes) in mapped.items()}


def _shape(parameter: _Parameter) -> tuple[int, ...] | None:
    if "row_var" in parameter.entries:  # (…, m, 1), and (…, 1, n) of the columns.
        columns = parameter.entries["col_var"].shape
        return (*parameter.entries["row_var"].shape[:-1], *columns[-1:])
    shapes = [
        tuple(value.shape)
        for name, value in parameter.entries.items()
        if name not in _NUMBERS and value is not None
    ]
    return shapes[0] if shapes else None


def _import(tx: Any, params: Any, placed: _Placed, step: int | None) -> Any:
    lifted = _state.lifted_of(tx, "torch")
    slots, scalars = _state.entries_of(lifted, _VOCABULARY)
    decaying = _state.decaying(lifted, params)
    for path, (parameter, _) in placed.items():
        _check_options(lifted, parameter, decaying[path])
    rates = {
        float(plain(parameter.options["lr"])): parameter.name for parameter, _ in placed.values()
    }
    if max(rates, default=0) > 1.000001 * min(rates, default=0):
        slow, fast = min(rates), max(rates)
        raise ValueError(
            f"{rates[slow]} was saved with lr={slow:g} and {rates[fast]} with lr={fast:g}: give a dict "
            "of optimizers, one for each group, and param_labels, as to optax.partition."
        )
    is_empty = not any(parameter.entries for parameter, _ in placed.values())
    if is_empty and step is None and (slots or not _has_schedule(lifted)):
        return tx.init(params)  # Saved before the first step, or an optimizer without state.
    counted = lifted.factory not in _UNCOUNTED
    numbers = {entry.name for entry in scalars.values()}
    saved, steps, leaves = {}, {}, _arrays.paths(params)
    for path, (parameter, axes) in placed.items():
        slots, _ = _state.entries_of(lifted, _VOCABULARY, np.shape(leaves[path]))
        expected = {entry.name for entry in slots.values()} | numbers
        expected |= {"step"} if counted else set()
        # A buffer that is not in use is saved as None.
        entries = {name: value for name, value in parameter.entries.items() if value is not None}
        if set(entries) != expected:
            raise ValueError(
                f"{parameter.name} was saved with {sorted(entries) or 'nothing'}, where {lifted!r} has "
                f"{sorted(expected)}: another optimizer, or a parameter without gradients, saved it."
            )
        whats = {name: f"{name} of {parameter.name}" for name in entries}
        if counted:
            steps[parameter.name] = _arrays.number(entries.pop("step"), whats["step"])
        one = _state.Saved(parameter.name)
        if "row_var" in entries:
            row, column = _squeezed(entries.pop("row_var"), entries.pop("col_var"), parameter.name)
            one.entries["row_var"], one.entries["col_var"] = _arrays.factors_to_here(
                row, column, axes, parameter.name
            )
        for name, value in entries.items():
            own = None if name in numbers else axes
            one.entries[name] = _arrays.to_here(value, own, whats[name])
        saved[path] = one
    return _state.fill(tx, params, _VOCABULARY, "torch", saved, _one_step(steps, step, lifted))


def _squeezed(rows: Any, columns: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over the last axis and over the one before it, which PyTorch keeps with the length 1."""
    rows, columns = (
        _arrays.array(rows, f"row_var of {name}"), _arrays.array(columns, f"col_var of {name}")
    )  # fmt: skip
    if rows.ndim < 2 or rows.shape[-1] != 1 or columns.ndim < 2 or columns.shape[-2] != 1:
        raise ValueError(
            f"row_var and col_var of {name} have the shapes {rows.shape} and {columns.shape}: expected "
            "(…, m, 1) and (…, 1, n)."
        )
    return rows[..., 0], columns[..., 0, :]


def _one_step(steps: Mapping[str, float], step: int | None, lifted: Lifted) -> int:
    """The number of steps that all parameters have taken."""
    if len(set(steps.values())) > 1:
        few, many = min(steps, key=steps.get), max(steps, key=steps.get)  # type: ignore[arg-type]
        raise ValueError(
            f"the parameters have taken different numbers of steps, {few} {steps[few]:g} and {many} "
            f"{steps[many]:g}: here one count is kept for all."
        )
    saved = int(next(iter(steps.values()))) if steps else None
    if saved is not None and step is not None and saved != step:
        raise ValueError(f"step={step} was given, but {saved} steps were saved.")
    if saved is None and step is None and _has_schedule(lifted):
        raise ValueError(
            f"{lifted!r} has a schedule, and {_class_of(lifted)} does not save how many steps it has "
            "taken: give it as step=."
        )
    # With a velocity in place, any number of steps but none is the same.
    return saved if saved is not None else 1 if step is None else step


def _has_schedule(lifted: Lifted) -> bool:
    return any(callable(value) for value in lifted.arguments().values())


def _check_options(lifted: Lifted, parameter: _Parameter, decays: bool) -> None:
    """Raises unless a parameter was saved by this optimizer, with these options."""
    expected = _options(lifted, decays)
    group = {
        name: value
        for name, value in parameter.options.items()
        if name not in {"params", "param_names", "lr"} | _OF_SCHEDULERS | IMPLEMENTATIONS
    }
    unknown = set(group) - set(expected)
    missing = set(expected) - set(group) - _NEWER
    if unknown or missing:
        what = f"has {sorted(unknown)}" if unknown else f"lacks {sorted(missing)}"
        raise ValueError(
            f"the group of {parameter.name} {what}: it was not saved by torch.optim."
            f"{_class_of(lifted)}, whose options are {sorted(expected)}."
        )
    for name, value in group.items():
        value = plain(value)  # An option may be a tensor.
        if not _are_equal(expected[name], value):
            remedy = "Make the optimizer with the saved value."
            if not isinstance(expected[name], bool) and name != "momentum":
                remedy = "Import with the saved value: the state then goes on under any other."
            if name in ("betas", "momentum") and "max_momentum" in parameter.options:
                low, high = (parameter.options[f"{each}_momentum"] for each in ("base", "max"))
                remedy = (
                    f"OneCycleLR or CyclicLR moves it between {low:g} and {high:g}. Import with the "
                    "saved value: the state then goes on under any other."
                )
            if "param_names" not in parameter.options:
                remedy += " Or are the parameters in another order than the optimizer had them?"
            raise ValueError(
                f"{parameter.name} was saved with {name}={value!r}, but the optimizer has "
                f"{expected[name]!r} for it. {remedy}"
            )


def _as_option(value: Any) -> Any:
    """A number as a float, but for counts."""
    return value if value is None or isinstance(value, (str, int)) else float(value)


def _class_of(lifted: Lifted) -> str:
    return _CLASSES[lifted.factory.__name__]  # type: ignore[union-attr]


def _are_equal(ours: Any, theirs: Any) -> bool:
    """Whether two options are. A number that went through float32 is meant to be the same."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)  # NaN for None.
    if ours.shape != theirs.shape:
        return False
    return np.allclose(ours, theirs, rtol=1e-6, atol=0, equal_nan=True)


def _options(lifted: Lifted, decays: bool) -> dict[str, Any]:
    """The options of torch.optim, but for lr, that this optimizer stands for."""
    values = {}
    for name, parameter in inspect.signature(lifted.factory).parameters.items():  # type: ignore[arg-type]
        if name in {"lr", "axes", "mask", "storage"} | IMPLEMENTATIONS:
            continue
        # A number without effect is left out of the rules.
        absent = parameter.default
        absent = absent if absent is None or isinstance(absent, bool) else 0
        value = _state.setting(lifted, name, absent)
        parts = value if isinstance(value, tuple) else (value,)
        if any(callable(each) for each in parts):
            raise ValueError(
                f"{name} of {lifted!r} is a schedule, which PyTorch does not have: give it the "
                "number that it has at this step."
            )
        if isinstance(absent, bool):
            values[name] = bool(value)
        else:
            numbers = tuple(map(_as_option, parts))
            values[name] = numbers if isinstance(value, tuple) else numbers[0]
    if lifted.factory is adamw:
        values["decoupled_weight_decay"] = True
    return values if decays else {**values, "weight_decay": 0.0}


def export_state(
    tx: Any, params: Any, opt_state: Any, mapping: Any = None, *, param_labels: Any = None
) -> dict[str, Any]:
    """The reverse of `import_state`: for `optimizer.load_state_dict` of PyTorch.

    Args:
      tx: the optimizer of this module, or a mapping from labels to optimizers.
      params: the parameters here.
      opt_state: the state to export.
      mapping: from PyTorch's names to paths here, or to (path, axes), in the order of PyTorch's
        optimizer. It can be left out if params is a tree whose leaves have an order of their own.
      param_labels: the second argument of `optax.partition`.

    Returns:
      A state_dict with every option of the installed version of PyTorch, and with the mapping's names.
      `lr` is that of the next step. There is one group; for a dict of optimizers one for each, and for
      an optimizer with a `mask` one with weight decay and one without, in the order in which the
      mapping has their first members.

    Raises:
      ImportError: without PyTorch.
      TypeError, ValueError: for a state of another optimizer, and for a dict of params without
        a mapping: JAX sorts its keys, PyTorch does not.
    """
    torch = imported_torch()
    mapped = _match.for_export(params, mapping, "PyTorch's")
    optimizers, trees, states = [tx], [params], [opt_state]
    if isinstance(tx, Mapping):
        optimizers, trees = list(tx.values()), _state.parts(tx, params, param_labels)
        states = [opt_state.inner_states[label].inner_state for label in tx]
    # A group for each optimizer, two where its mask lets some weights decay, in the mapping's order.
    groups: dict[tuple[int, bool], _Group] = {}
    saved: dict[str, dict[str, Any]] = {}
    group_of: dict[str, tuple[int, bool]] = {}
    for number, (each, tree, part) in enumerate(zip(optimizers, trees, states, strict=True)):
        lifted = _state.lifted_of(each, "torch")
        entries, scalars, count = _state.read(each, part, tree, _VOCABULARY, "torch")
        rate = _state.setting(lifted, "lr", None)
        rate = float(rate(count)) if callable(rate) else float(rate)  # type: ignore[arg-type]
        numbers = {**({} if lifted.factory in _UNCOUNTED else {"step": count}), **scalars}
        # Adagrad has its state from the start, the others from the first step on.
        is_fresh = count == 0 and lifted.factory is not adagrad
        for path, decays in _state.decaying(lifted, tree).items():
            group_of[path] = number, decays
            groups[number, decays] = _Group(lifted, {**_options(lifted, decays), "lr": rate})
            saved[path] = {} if is_fresh else {**numbers, **entries[path]}
    for name, (path, axes) in mapped.items():
        if "row_var" in saved[path]:
            factors = saved[path]["row_var"], saved[path]["col_var"]
            row, column = _arrays.factors_to_there(*factors, axes, name)
            saved[path] |= {"row_var": row[..., None], "col_var": column[..., None, :]}
        groups[group_of[path]].members.append((name, path, axes))
    state, param_groups = {}, []
    in_order = dict.fromkeys(group_of[path] for path, _ in mapped.values())
    for group in (groups[key] for key in in_order):
        indices = []
        for _, path, axes in group.members:
            indices.append(sum(len(each["params"]) for each in param_groups) + len(indices))
            if saved[path]:
                state[indices[-1]] = {
                    name: torch.tensor(float(value))
                    if np.ndim(value) == 0 and name in _NUMBERS
                    else torch.from_numpy(
                        _arrays.to_there(value, None if name in _FACTORS else axes).copy()
                    )
                    for name, value in saved[path].items()
                }
        names = [name for name, _, _ in group.members] if mapping is not None else None
        param_groups.append(group.as_pytorch_writes_it(torch, indices, names))
    return {"state": state, "param_groups": param_groups}


@dataclasses.dataclass
class _Group:
    """A group of parameters: its optimizer, its options, and (name, path, axes) of each member."""

    lifted: Lifted
    options: dict[str, Any]
    members: list[tuple[str, str, Any]] = dataclasses.field(default_factory=list)

    def as_pytorch_writes_it(self, torch: Any, indices: Any, names: Any) -> dict[str, Any]:
        """With every option that this version of PyTorch has."""
        options = dict(self.options)
        if self.lifted.factory is adamw:
            options.pop("decoupled_weight_decay")
        kind = getattr(torch.optim, _class_of(self.lifted))
        # With two axes, without which Muon takes none.
        saved = kind([torch.nn.Parameter(torch.empty(0, 0))], **options).state_dict()
        (group,) = saved["param_groups"]
        return {**group, "params": indices} | ({"param_names": names} if names else {})

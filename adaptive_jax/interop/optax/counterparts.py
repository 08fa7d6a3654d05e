"""What optax keeps for each rule: under which names, and in which form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ... import maths
from ..._core import states
from ..._core.rule import Rule
from ...rules.adopt import ADOPT
from ...rules.averaging import Lookahead
from ...rules.betting import COCOB, Mechanic
from ...rules.cover import SM3
from ...rules.curvature import Sophia
from ...rules.differences import Adan, OptimisticGradient
from ...rules.distance import DoG, DoWG
from ...rules.mixtures import AdEMAMix, SimplifiedAdEMAMix
from ...rules.orthogonal import Muon
from ...rules.parameter_free import DAdaptAdamW, Prodigy
from ...rules.polyak import MoMo, MoMoAdam
from ...rules.schedule_free import ScheduleFree, ScheduleFreeAdamW, ScheduleFreeSteps


@dataclass(frozen=True)
class At:
    """Where a run is: what a conversion may need beside the state.

    params: the parameters.
    step: how many steps were taken, as the user says or the rest of the state; None if neither does.
    slow: the slow parameters of `optax.lookahead`, where the user gave them.
    """

    params: Any
    step: int | None = None
    slow: Any = None

    def counted(self, what: str) -> int:
        """The number of steps, for what needs it."""
        if self.step is None:
            raise ValueError(f"{what} needs the number of steps taken: give it as step=….")
        return self.step


@dataclass(frozen=True)
class Counterpart:
    """What optax keeps for a rule.

    state: the name of its NamedTuple.
    entries: those that are the same, from ours to theirs.
    here: what else there is here: of the rule, their state, and where the run is.
    there: what else there is there: of the rule, our state with slots decoded, theirs at first, and where
      the run is.
    """

    state: str
    entries: Mapping[str, str] = field(default_factory=dict)
    here: Callable[[Any, Any, At], dict[str, Any]] = lambda rule, theirs, at: {}
    there: Callable[[Any, Any, Any, At], dict[str, Any]] = lambda rule, ours, first, at: {}

    def read(self, rule: Rule, theirs: Any, at: At) -> dict[str, Any]:
        """Our entries, of their state."""
        same = {name: getattr(theirs, entry) for name, entry in self.entries.items()}
        return same | self.here(rule, theirs, at)

    def written(self, rule: Rule, ours: SimpleNamespace, first: Any, at: At) -> Any:
        """Their state, of our entries and of their state at first."""
        same = {entry: getattr(ours, name) for name, entry in self.entries.items()}
        return first._replace(**(same | self.there(rule, ours, first, at)))


def _names(*same: str, **renamed: str) -> dict[str, str]:
    return {name: name for name in same} | renamed


def _norms(tree: Any) -> Any:
    return jax.tree.map(maths.norm, tree)


def _dog_here(rule: DoG, theirs: Any, at: At) -> dict[str, Any]:
    return {
        "norm": jnp.sqrt(theirs.sum_sq_norm_grads),
        "first_norm": _norms(theirs.init_params),
        "count": 0 if theirs.is_init_step else max(at.step or 0, 1),
    }


def _dog_there(rule: DoG, ours: Any, first: Any, at: At) -> dict[str, Any]:
    # The first distance is there before the first step, and here after it.
    return {
        "is_init_step": ours.count == 0,
        "max_dist": jnp.maximum(first.max_dist, ours.distance),
        "sum_sq_norm_grads": ours.norm**2,
    }


def _sm3_here(rule: SM3, theirs: Any, at: At) -> dict[str, Any]:
    treedef = jax.tree.structure(at.params)
    every = treedef.flatten_up_to(theirs.mu)
    names = [name for name in rule.slots if name != "mu"]
    for leaf, sums in zip(treedef.flatten_up_to(at.params), every, strict=True):
        if not 0 < len(sums) <= len(names):
            raise ValueError(
                f"optax's SM3 keeps {len(sums)} sums for an array of shape {leaf.shape}, where there are 1 "
                f"to {len(names)} here: it runs neither there nor as one of both. Start this array anew."
            )
    return {
        name: treedef.unflatten([x[axis] if axis < len(x) else None for x in every])
        for axis, name in enumerate(names)
    }


def _sm3_there(rule: SM3, ours: Any, first: Any, at: At) -> dict[str, Any]:
    treedef = jax.tree.structure(at.params)
    columns = [treedef.flatten_up_to(getattr(ours, name)) for name in rule.slots if name != "mu"]
    rows = [[x for x in row if x is not None] for row in zip(*columns, strict=True)]
    for leaf, sums in zip(treedef.flatten_up_to(at.params), rows, strict=True):
        if leaf.ndim != len(sums):
            raise ValueError(
                f"an array of shape {leaf.shape} has {len(sums)} sums here, and optax's SM3 keeps one for "
                "each of its axes."
            )
    return {"mu": treedef.unflatten(rows)}


def _mechanic_here(rule: Mechanic, theirs: Any, at: At) -> dict[str, Any]:
    scale = theirs.s.sum() + rule.eps
    delta = jax.tree.map(lambda x, start: (x - start) / scale, at.params, theirs.x0)
    is_first = theirs.count == 0  # The start is then what the first update sees.
    start = jax.tree.map(lambda x, old: jnp.where(is_first, x, old), at.params, theirs.x0)
    delta = jax.tree.map(lambda x: jnp.where(is_first, jnp.zeros_like(x), x), delta)
    return {"r": jnp.maximum(theirs.r, 0), "start": start, "delta": delta}


def _mechanic_there(rule: Mechanic, ours: Any, first: Any, at: At) -> dict[str, Any]:
    # What they ask of the count is whether it is 0, and so is no scale after the first step.
    moved = ours.s.sum() > 0
    count = (at.step or 1) * moved
    return {"count": count, "s": jnp.where(moved, ours.s, first.s)}


def _free_here(rule: ScheduleFree, theirs: Any, at: At) -> dict[str, Any]:
    return {"count": theirs.step_count - 1}


def _free_there(rule: ScheduleFree, ours: Any, first: Any, at: At) -> dict[str, Any]:
    return {"step_count": ours.count + 1}


def _of_rms(state: Any, change: Callable[[Any], Any]) -> Any:
    """The state of a base optimizer with its second moment and its counts changed."""
    if hasattr(state, "_fields"):
        return change(state)
    return tuple(_of_rms(each, change) for each in state)


def _free_adamw_here(rule: ScheduleFreeAdamW, theirs: Any, at: At) -> dict[str, Any]:
    found: list[Any] = []
    _of_rms(theirs.base_optimizer_state, found.append)
    nus = [each.nu for each in found if "nu" in each._fields]
    if len(nus) != 1:
        kinds = ", ".join(type(each).__name__ for each in found)
        raise ValueError(
            f"base_optimizer_state has {kinds}, which is not what schedule_free_adamw keeps: for another "
            "optimizer take aj.schedule_free(optimizer, learning_rate)."
        )
    return {"nu": nus[0], **_free_here(rule, theirs, at)}


def _free_own_base_there(rule: ScheduleFree, ours: Any, first: Any, at: At) -> dict[str, Any]:
    def changed(state: Any) -> Any:
        new = {"count": ours.count} if "count" in state._fields else {}
        new |= {"nu": ours.nu} if "nu" in state._fields else {}
        return state._replace(**new)

    base = _of_rms(first.base_optimizer_state, changed)
    return {"base_optimizer_state": base, **_free_there(rule, ours, first, at)}


def _lookahead_here(rule: Lookahead, theirs: Any, at: At) -> dict[str, Any]:
    if at.slow is None:
        raise ValueError(
            "optax keeps the slow parameters beside the fast ones, and not in the state: give as params "
            "what its update got, optax.LookaheadParams(fast, slow)."
        )
    return {"slow": at.slow, "count": theirs.steps_since_sync}


_FREE = _names("weight_sum", "z", largest_rate="max_lr")
_AVERAGES = {"value": "barf", "slope": "gamma", "bound": "lb", "count": "count", "mu": "exp_avg"}
_MOMENTS = _names("count", mu="exp_avg", nu="exp_avg_sq")

COUNTERPARTS: dict[type[Rule], Counterpart] = {
    ADOPT: Counterpart("ScaleByAdamState", _names("count", "mu", "nu")),
    Adan: Counterpart("ScaleByAdanState", _names("m", "v", "n", "g", count="t")),
    AdEMAMix: Counterpart(
        "ScaleByAdemamixState",
        _names("count", "nu", mu="m1", mu_slow="m2"),
        there=lambda rule, ours, first, at: {"count_m2": ours.count},
    ),
    SimplifiedAdEMAMix: Counterpart(
        "ScaleBySimplifiedAdEMAMixState", _names(count="t", mu="m", nu="n")
    ),
    OptimisticGradient: Counterpart(
        "ScaleByOptimisticGradientState", _names("is_initial_step", "previous_gradient")
    ),
    SM3: Counterpart("ScaleBySM3State", {"mu": "nu"}, _sm3_here, _sm3_there),
    Sophia: Counterpart("SophiaState", _names("count", "mu", "nu")),
    COCOB: Counterpart(
        "COCOBState",
        _names(
            "reward", largest="scale", sizes="subgradients", total="cumulative_gradients",
            start="init_particles",
        ),
    ),
    DAdaptAdamW: Counterpart(
        "DAdaptAdamWState", _MOMENTS | _names(d="estim_lr", r="numerator_weighted", s="grad_sum")
    ),
    Prodigy: Counterpart(
        "ProdigyState",
        _MOMENTS | _names(d="estim_lr", r="numerator_weighted", s="grad_sum", start="params0"),
        lambda rule, theirs, at: {"d_max": theirs.estim_lr},
    ),
    DoG: Counterpart(
        "DoGState", _names(distance="max_dist", first_params="init_params"), _dog_here, _dog_there
    ),
    DoWG: Counterpart(
        "DoWGState",
        _names(squared_distance="estim_sq_dist", first_params="init_params"),
        lambda rule, theirs, at: {"norm": jnp.sqrt(theirs.weighted_sq_norm_grads)},
        lambda rule, ours, first, at: {"weighted_sq_norm_grads": ours.norm**2},
    ),
    MoMo: Counterpart("MomoState", _AVERAGES),
    MoMoAdam: Counterpart("MomoAdamState", {**_AVERAGES, "nu": "exp_avg_sq"}),
    Muon: Counterpart(
        "MuonState",
        _names("mu"),
        there=lambda rule, ours, first, at: {"count": at.counted("optax.contrib.muon")},
    ),
    ScheduleFree: Counterpart("ScheduleFreeState", _FREE, _free_here, _free_own_base_there),
    ScheduleFreeAdamW: Counterpart(
        "ScheduleFreeState", _FREE, _free_adamw_here, _free_own_base_there
    ),
    ScheduleFreeSteps: Counterpart("ScheduleFreeState", _FREE, _free_here, _free_there),
    Mechanic: Counterpart(
        "MechanicState",
        _names("s", "r", "m", "v", start="x0"),
        _mechanic_here,
        _mechanic_there,
    ),
    Lookahead: Counterpart(
        "LookaheadState",
        {},
        _lookahead_here,
        lambda rule, ours, first, at: {"steps_since_sync": ours.count % rule.sync_period},
    ),
}  # fmt: skip
"""Of the rules whose state is another one in optax. What is not here has optax's own, or none there."""

AROUND: dict[type[Rule], str] = {
    ScheduleFreeSteps: "base_optimizer_state",
    Mechanic: "base_optimizer_state",
    Lookahead: "fast_state",
}
"""Of what stands behind an optimizer here, and around it in optax: the entry that is that one's state."""


def counterpart(rule: Rule) -> Counterpart | None:
    """What optax keeps for a rule; None where it has nothing like it."""
    if type(rule) in COUNTERPARTS:
        return None if rule.layerwise else COUNTERPARTS[type(rule)]
    layout = states.layout_of(rule)  # Without the count that a storage may add.
    kind = states.state_type(layout.name, layout.fields)
    if kind.__module__.partition(".")[0] != optax.__name__:
        return None
    return Counterpart(layout.name, _names(*layout.fields))

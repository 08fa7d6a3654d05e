"""What a whole training run takes of memory, before anything of it is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .._core import pytrees
from .._core.transformation import member
from ..transforms.behind import with_average
from ..transforms.describe import Description, describe
from ..transforms.precision import is_coarse
from ..transforms.shards import Axes, placed_state
from .loss_scale import LossScale
from .search.table import Table
from .state import TrainState
from .step import TrainStep


@dataclass(frozen=True)
class Bytes:
    """How many bytes something is: each array once, however many devices have it; and on each device."""

    total: int
    on_each_device: int


@dataclass(frozen=True, repr=False)
class RunMemory:
    """What a training run takes of memory, as `aj.run_memory` finds it; `print` shows a table.

    numbers: how many numbers the parameters are.
    devices: how many devices hold them.
    rows: of each part its bytes, `total` and `on_each_device`: "parameters"; "gradients", of those that
      are trained; each slot of the optimizer's state, "state, mu"; "state, other", such as counts; "model
      state", where there is one. With a step also "batch", and "activations", which is all else that the
      step needs for a moment.
    kept_as: of each slot, the dtypes it is kept in.
    """

    numbers: int
    devices: int
    rows: dict[str, Bytes]
    kept_as: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All bytes, each array once."""
        return sum(each.total for each in self.rows.values())

    @property
    def on_each_device(self) -> int:
        """All bytes that one device holds."""
        return sum(each.on_each_device for each in self.rows.values())

    @property
    def state(self) -> int:
        """The bytes of the optimizer's state, each array once."""
        return self._sum("state").total

    def _sum(self, name: str) -> Bytes:
        found = [each for key, each in self.rows.items() if key.partition(",")[0] == name]
        return Bytes(sum(x.total for x in found), sum(x.on_each_device for x in found))

    def _row(self, name: str, size: Bytes) -> tuple[str, ...]:
        per_number = f"{size.total / max(1, self.numbers):.4g}"
        each = (shown_bytes(size.on_each_device),) if self.devices > 1 else ()
        return name, self.kept_as.get(name, ""), shown_bytes(size.total), per_number, *each

    def _table(self) -> Table:
        rows = [self._row(name, size) for name, size in self.rows.items()]
        total = Bytes(self.total, self.on_each_device)
        each = ("on each device",) if self.devices > 1 else ()
        caption = "" if "activations" in self.rows else _NO_ACTIVATIONS
        headings = ("", "kept as", "bytes", "per parameter", *each)
        return Table(headings, (*rows, self._row("total", total)), caption)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


class RunMemories(dict[str, RunMemory]):
    """What a training run takes with each of several optimizers, by their names; `print` shows a table."""

    def _table(self) -> Table:
        devices = max(each.devices for each in self.values())
        names = list(dict.fromkeys(key.partition(",")[0] for x in self.values() for key in x.rows))
        each_device = ("on each device",) if devices > 1 else ()
        rows = [
            (
                name,
                *(shown_bytes(memory._sum(part).total) for part in names),
                shown_bytes(memory.total),
                f"{memory.total / max(1, memory.numbers):.4g}",
                *((shown_bytes(memory.on_each_device),) if devices > 1 else ()),
            )
            for name, memory in self.items()
        ]
        caption = "" if "activations" in names else _NO_ACTIVATIONS
        headings = ("", *names, "total", "per parameter", *each_device)
        return Table(headings, tuple(rows), caption)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


_NO_ACTIVATIONS = "without activations: give step= and batch="


def shown_bytes(count: int) -> str:
    """A number of bytes as a person would say it, "26.95 GB"."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.4g} {unit}"


def run_memory(
    tx: Any,
    params: Any,
    *,
    step: Any = None,
    batch: Any = None,
    model_state: Any = None,
    rng: Any = None,
    loss_scale: LossScale | None = None,
    average: optax.GradientTransformation | None = None,
    shard: Axes | None = None,
) -> Any:
    """What a whole training run takes of memory: parameters, gradients, state, and activations.

    Nothing is allocated, and without a step nothing is compiled: a model that no device here could hold
    is counted in a second. Gradients are all counted, as many as are trained, though a step need not hold
    all of them at once. With a step, the compiler says what it holds: "gradients" and "activations" are
    together what it needs beside its arguments, for the devices that are here.

    Args:
      tx: the optimizer; or several by their names, `{"float32": aj.adam(1e-3), "int8": aj.adam(1e-3,
        storage="int8")}`, to compare.
      params: the parameters, as arrays or as shapes: `jax.eval_shape(init, key)`. Those on a mesh are
        counted for each of its devices too.
      step: what `aj.train_step` returned, which is compiled for `batch`; or a step of one's own that is
        compiled, `jax.jit(step, donate_argnums=0).lower(…).compile()`.
      batch: a batch, as arrays or as shapes.
      model_state: as in `TrainState.create`, as are all that follow: as arrays or as shapes.
      rng: a random key, for a loss function that takes one.
      loss_scale: a `LossScale`.
      average: an average of the parameters, such as `aj.average(0.999)`.
      shard: axes of the mesh that the state is split over.

    Returns:
      A `RunMemory`, with `total`, `on_each_device`, `state` and `rows`; for several optimizers a dict of
      these by their names. Both print as a table.

    Raises:
      TypeError, ValueError: for what is no optimizer, parameters that are no arrays, a step without a
        batch or a batch without a step, and what the step itself refuses.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> params = {"w": jax.ShapeDtypeStruct((65536, 65536), jnp.bfloat16)}
      >>> print(aj.run_memory({"float32": aj.adam(1e-3), "int8": aj.adam(1e-3, storage="int8")}, params))
               parameters  gradients     state     total  per parameter
      float32     8.59 GB    8.59 GB  34.36 GB  51.54 GB             12
         int8     8.59 GB    8.59 GB  8.724 GB   25.9 GB          6.031
      without activations: give step= and batch=

      With a step, and on shapes alone:

      >>> step = aj.train_step(lambda params, x: jnp.mean(jnp.tanh(x @ params["w"]) ** 2))
      >>> params = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
      >>> batch = jax.ShapeDtypeStruct((4096, 512), jnp.float32)
      >>> memory = aj.run_memory(aj.adam(1e-3), params, step=step, batch=batch)
      >>> memory.rows["parameters"].total, memory.state, memory.rows["activations"].total > 4 * 4096 * 512
      (1048576, 2097156, True)
    """
    given = {"step": step, "batch": batch}
    options = {
        "model_state": model_state, "rng": rng, "loss_scale": loss_scale, "average": average,
        "shard": shard,
    }  # fmt: skip
    if isinstance(tx, Mapping):
        if not tx:
            raise ValueError("tx={} has no optimizer in it: give some by their names.")
        return RunMemories(
            {name: run_memory(each, params, **given, **options) for name, each in tx.items()}
        )
    _check_step(step, batch)
    tx = member(tx, "run_memory")
    pytrees.check_floats("params", params)
    arrays = jax.tree.map(_shape, params)
    if average is not None:
        # Which says what is no average.
        jax.eval_shape(lambda x: TrainState.create(x, tx, average=average), arrays)
        tx = with_average(tx, member(average, "run_memory"))
    devices = max((_devices(x) for x in jax.tree.leaves(arrays)), default=1)
    description = describe(tx, arrays, shard=shard)
    rows = {"parameters": _size(arrays), "gradients": _gradients(description)}
    of_state, kept_as = _of_state(description)
    rows |= of_state
    if model_state is not None:
        rows["model state"] = _size(jax.tree.map(_shape, model_state))
    if step is not None:
        if batch is not None:
            rows["batch"] = _size(jax.tree.map(_shape, batch))
        compiled = step
        if isinstance(step, TrainStep):
            state = _state(tx, arrays, model_state, rng, loss_scale, shard)
            compiled = step.lower(state, batch).compile()
        rows |= _of_moment(compiled, rows["gradients"], devices)
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(arrays))
    return RunMemory(numbers, devices, rows, kept_as)


def _check_step(step: Any, batch: Any) -> None:
    if step is None:
        if batch is not None:
            raise TypeError("batch=… is for a step: give step=aj.train_step(loss) too.")
    elif isinstance(step, TrainStep):
        if batch is None:
            raise TypeError("step=… needs a batch, of arrays or of shapes: give batch=… too.")
    elif not hasattr(step, "memory_analysis"):
        raise TypeError(
            f"step={step!r:.80} must be what aj.train_step(loss) returned, or a step that is compiled, "
            "jax.jit(step).lower(…).compile()."
        )


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None)
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    is_on_mesh = isinstance(sharding, NamedSharding) and not sharding.mesh.empty
    return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=sharding if is_on_mesh else None)


def _devices(x: jax.ShapeDtypeStruct) -> int:
    return x.sharding.mesh.size if isinstance(x.sharding, NamedSharding) else 1


def _size(shapes: Any) -> Bytes:
    """What arrays take where they lie: on each device the part that it has."""
    total = each = 0
    for x in jax.tree.leaves(shapes):
        own = x.sharding.shard_shape(x.shape) if isinstance(x.sharding, NamedSharding) else x.shape
        total += math.prod(x.shape) * x.dtype.itemsize
        each += math.prod(own) * x.dtype.itemsize
    return Bytes(total, each)


def _gradients(description: Description) -> Bytes:
    """Those of all arrays that something updates: in their dtype, and float32 for one of 8 bits."""
    frozen = {row.path for row in description.rows if row.rule is None}
    trained = {row.path: row.array for row in description.rows if row.path not in frozen}
    return _size(
        [
            jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
            if is_coarse(x.dtype)
            else x
            for x in trained.values()
        ]
    )


def _of_state(description: Description) -> tuple[dict[str, Bytes], dict[str, str]]:
    """The bytes of each slot, and of all that is none; and the dtypes of each slot."""
    slots: dict[str, list[Any]] = {}
    for row in description.rows:
        for slot in row.slots:
            slots.setdefault(f"state, {slot.name}", []).append(slot)
    sizes = {name: _size([slot.kept for slot in every]) for name, every in slots.items()}
    kept_as = {}
    for name, every in slots.items():
        largest = max(every, key=lambda slot: slot.nbytes)
        dtypes = dict.fromkeys(x.dtype.name for x in jax.tree.leaves(largest.kept))
        kept_as[name] = " + ".join(dtypes)
    if description.other:
        each = description.other
        if description.on_each_device is not None:
            of_slots = sum(size.on_each_device for size in sizes.values())
            each = description.on_each_device - of_slots
        sizes["state, other"] = Bytes(description.other, each)
    return {name: size for name, size in sizes.items() if size.total}, kept_as


def _state(
    tx: Any,
    params: Any,
    model_state: Any,
    rng: Any,
    loss_scale: LossScale | None,
    shard: Axes | None,
) -> TrainState:
    """The state of the run, of shapes that lie where its arrays would."""
    model_state = jax.tree.map(_shape, model_state)
    state = jax.eval_shape(
        lambda params, model_state: TrainState.create(
            params, tx, model_state=model_state, rng=rng, loss_scale=loss_scale, copy=False
        ),
        params,
        model_state,
    )
    state = dataclasses.replace(state, tx=tx, params=params, model_state=model_state, rng=rng)
    on_mesh = [x.sharding.mesh for x in jax.tree.leaves(params) if x.sharding is not None]
    if not on_mesh:
        return state
    everywhere = NamedSharding(on_mesh[0], PartitionSpec())

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or everywhere)

    rest = {
        name: jax.tree.map(placed, getattr(state, name))
        for name in ("step", "model_state", "loss_scale", "skipped")
    }
    if rng is not None:
        rest["rng"] = jax.device_put(rng, everywhere)
    return dataclasses.replace(state, opt_state=placed_state(tx, params, shard), **rest)


def _of_moment(compiled: Any, gradients: Bytes, devices: int) -> dict[str, Bytes]:
    """What a compiled step needs for a moment, in gradients and all else."""
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError(
            "the compiler for the devices here does not tell what a step needs: leave step= out."
        )
    # What it returns beside what it writes over is there at the end.
    returned = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    each = found.temp_size_in_bytes + returned
    own = min(gradients.on_each_device, each)
    total = gradients.total if own == gradients.on_each_device else own * devices
    return {
        "gradients": Bytes(total, own),
        "activations": Bytes((each - own) * devices, each - own),
    }

"""The runs of a sweep: each traced, compiled as one program, and called in pieces that fit in memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ... import maths
from ..._core import pytrees
from ..agreement import spans_processes
from ..state import TrainState
from .table import counted, plain, shown

EVALUATION = "evaluation"
"""What the result of `evaluate` is called among the metrics."""
PARAMS = "params"
"""What the parameters that are kept are called there."""


class BatchesBySeed(NamedTuple):
    """Batches that a seed chooses.

    seeds: of shape (seeds,). batches: a tree of arrays, seeds x steps x ….
    """

    seeds: Any
    batches: Any

    def taken_by(self, seed: Any) -> tuple[jax.Array, Callable[[Any], Any]]:
        """The numbers of the steps, and a function from one to the batch that the seed has there."""
        own = jnp.argmax(self.seeds == seed)
        steps = jnp.arange(jax.tree.leaves(self.batches)[0].shape[1])
        return steps, lambda step: jax.tree.map(lambda x: x[own, step], self.batches)


class Choices:
    """Arguments that choose code: compared by their values, which need not hash."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return hash(tuple(self.values))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Choices) or self.values.keys() != other.values.keys():
            return False
        return all(_same(self.values[name], other.values[name]) for name in self.values)

    def __str__(self) -> str:
        return ", ".join(f"{name}={shown(value)}" for name, value in self.values.items())


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (TypeError, ValueError):  # Arrays, say.
        return False


def objective_name(objective: Any, outputs: Any) -> str:
    """What the objective is called: its entry in the outputs, or the name of its function."""
    if isinstance(objective, str):
        return objective
    if objective is not None:
        name = getattr(objective, "__name__", "<lambda>")
        return "objective" if name == "<lambda>" else name
    if isinstance(outputs, Mapping) and len(outputs) == 1:
        return str(next(iter(outputs)))
    return "loss" if isinstance(outputs, Mapping) and "loss" in outputs else "objective"


@dataclass(frozen=True)
class Run:
    """One training run, a function of its numbers, and what it is judged by.

    evaluate: a function of the parameters at the end, with step.
    keep_params: whether these are part of the result.
    """

    train: Callable[..., Any]
    step: Callable[..., Any] | None
    evaluate: Callable[[Any], Any] | None
    keep_params: bool
    objective: str | Callable[[Any], Any] | None
    choices: Choices
    takes_seed: bool

    def __call__(self, numbers: dict[str, Any], seed: Any, batches: Any) -> tuple[Any, Any]:
        """The objective, and what train returned."""
        arguments = {**numbers, **self.choices.values}
        if self.takes_seed:
            arguments["seed"] = seed
        result = self.train(**arguments)
        if self.step is not None:
            if not isinstance(result, TrainState):
                raise TypeError(
                    f"with step, train makes a TrainState, and returned {type(result).__name__}: "
                    "return aj.TrainState.create(params, tx)."
                )
            result = self._metrics(result, batches, seed)
        outputs = jax.tree.map(jnp.asarray, result)
        return self._judged(outputs), outputs

    def _metrics(self, state: TrainState, batches: Any, seed: Any) -> Any:
        """One step per batch, and what they come to.

        The optimizer does not change, and keeps numbers of Python such.
        """
        assert self.step is not None
        step, tx = self.step, state.tx
        # Of those by seed a run takes one at a time: all of its own would be in memory once more.
        taken, look_up = (
            batches.taken_by(seed) if isinstance(batches, BatchesBySeed) else (batches, None)
        )

        def body(state: TrainState, batch: Any) -> Any:
            batch = batch if look_up is None else look_up(batch)
            state, metrics = step(state.replace(tx=tx), batch)
            return dataclasses.replace(state, tx=None), metrics

        last, metrics = jax.lax.scan(body, dataclasses.replace(state, tx=None), taken)
        if self.evaluate is None and not self.keep_params:
            return metrics
        params, added = last.replace(tx=tx).eval_params(), {}
        if self.evaluate is not None:
            added[EVALUATION] = self.evaluate(params)
        if self.keep_params:
            added[PARAMS] = params
        if not isinstance(metrics, Mapping) or metrics.keys() & added:
            found = list(metrics) if isinstance(metrics, Mapping) else _what(metrics)
            raise ValueError(
                f"evaluate and keep_params add {list(added)} to the metrics of step, and these are "
                f"{found}: let step return a dict without these names."
            )
        return {**metrics, **added}

    def _judged(self, outputs: Any) -> jax.Array:
        value = outputs
        if callable(self.objective):
            value = self.objective(outputs)
            value = jnp.asarray(value) if isinstance(value, (int, float, np.number)) else value
        elif isinstance(outputs, Mapping):
            name = objective_name(self.objective, outputs)
            if name not in outputs:
                raise ValueError(
                    f"objective={self.objective!r}, and train returns the entries {list(outputs)}: name "
                    "the one to judge by, or give a function of them."
                )
            value = _only_entry(name, outputs[name])
        elif self.objective is not None:
            raise ValueError(
                f"objective={self.objective!r} names an entry, and train returns no dict but "
                f"{_what(outputs)}: leave it out, or give a function of what train returns."
            )
        if (
            not hasattr(value, "shape")
            or value.ndim > 1
            or value.size == 0
            or value.dtype.kind == "c"
        ):
            if isinstance(value, TrainState):
                remedy = "give step=aj.train_step(…) and batches=…"
            elif isinstance(value, list):
                remedy = "return jnp.stack(losses)"
            else:
                remedy = "give objective, the name of an entry or a function of what train returns"
            raise ValueError(
                f"a run is judged by one real number or a curve of them, and this is {_what(value)}: "
                f"{remedy}."
            )
        return (value[-1] if value.ndim else value).astype(maths.compute_dtype(value.dtype))


def _only_entry(name: str, value: Any) -> Any:
    """The number of an entry that is a dict of one, as an `aj.Evaluation` returns it."""
    if not isinstance(value, Mapping) or not value:
        return value
    if len(value) > 1:
        raise ValueError(
            f"a run is judged by one real number or a curve of them, and {name!r} is a dict of "
            f"{', '.join(map(repr, value))}: choose one, objective=lambda result: "
            f"result[{name!r}][{next(iter(value))!r}]."
        )
    return next(iter(value.values()))


def _what(value: Any) -> str:
    return pytrees.describe(value) if hasattr(value, "shape") else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Plan:
    """The runs of one program: which settings, their numbers and their seeds, one entry per run."""

    rows: list[int]
    run: Run
    numbers: dict[str, np.ndarray]
    seeds: np.ndarray

    def part(self, start: int, stop: int) -> Plan:
        """The runs from start to stop. Their settings are called those of all."""
        numbers = {name: values[start:stop] for name, values in self.numbers.items()}
        return dataclasses.replace(self, numbers=numbers, seeds=self.seeds[start:stop])

    def piece(self, start: int, size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The numbers and seeds of some runs. After the last one it comes again: a size, a program."""
        places = np.minimum(np.arange(start, start + size), len(self.seeds) - 1)
        return {name: values[places] for name, values in self.numbers.items()}, self.seeds[places]


class Traced:
    """A run as JAX traced it, with the arrays that it closes over as arguments of their own.

    Traced in each call, since train may have changed by what it reads: a global, or another cell of a
    notebook. Equal to another that is the same program, and so compiled once.
    """

    def __init__(self, jaxpr: Any, outline: Any, arguments: Any) -> None:
        self.jaxpr, self.constants, self.outline = jaxpr.jaxpr, jaxpr.consts, outline
        for x in self.constants:
            if spans_processes(x):
                raise ValueError(
                    f"train reads {pytrees.describe(x)}, which is on devices of several processes, and "
                    "each process does its runs by itself: give it the numbers, np.asarray(x), where "
                    "every process has the whole of them."
                )
        self.treedef = jax.tree.structure(outline)
        lowered = jax.jit(lambda *every: self(*every)).lower(self.constants, *arguments)
        self.program = lowered.as_text(), self.treedef

    def __call__(self, constants: Any, *arguments: Any) -> Any:
        """The outputs, of these constants and arguments."""
        from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # It brings Pallas along.

        run = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))
        return jax.tree.unflatten(self.treedef, run(*jax.tree.leaves(arguments)))

    def __hash__(self) -> int:
        return hash(self.program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self.program == other.program


def trace(plan: Plan, batches: Any) -> Traced:
    """One run, traced: nothing is compiled."""
    varied, run = plan.numbers, plan.run

    def traced_with(concrete: Sequence[str], seed: int | None = None) -> tuple[Any, ...]:
        known = {name: plain(varied[name][0]) for name in concrete}
        traced = {
            name: jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(values.dtype))
            for name, values in varied.items()
            if name not in known
        }
        any_seed = jax.ShapeDtypeStruct((), np.int32)
        arguments = traced, any_seed, jax.tree.map(jax.typeof, batches)

        def one(numbers: Any, traced_seed: Any, batches: Any) -> Any:
            return run({**numbers, **known}, traced_seed if seed is None else seed, batches)

        return *jax.make_jaxpr(one, return_shape=True)(*arguments), arguments

    def works(*arguments: Any) -> bool:
        try:
            traced_with(*arguments)
        except Exception:
            return False
        return True

    try:
        traced = traced_with(())
    except Exception as error:
        needed = list(varied)
        because = f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        if not works(needed):
            if run.takes_seed and works(needed, 0):
                raise ValueError(
                    "train needs the value of its seed while it is traced: draw random numbers from "
                    f"jax.random.key(seed), not with NumPy. {because}"
                ) from error
            raise
        for name in varied:
            fewer = [each for each in needed if each != name]
            needed = fewer if works(fewer) else needed
        values = ", ".join(f"{name!r}" for name in needed)
        instead = ""
        if _is_raised_in(error, "optax.schedules"):
            instead = (
                ". Schedules of optax take Python numbers: keep one whose peak is 1, and multiply by the "
                "peak behind it, aj.chain(aj.adam(schedule), aj.scale_by_learning_rate(peak, "
                "flip_sign=False))"
            )
        elif isinstance(error, jax.errors.TracerBoolConversionError):
            instead = ", or write the branch with jnp.where"
        elif isinstance(error, jax.errors.TracerArrayConversionError):
            instead = ", or write jnp where it is np: what NumPy computes is no part of a compiled program"
        raise ValueError(
            f"train needs the value of {values} while it is traced, to choose a shape by or to branch "
            f"on: give sweep static=({values},), beside what it may have, which compiles once per value"
            f"{instead}. {because}"
        ) from error
    return Traced(*traced)


def _is_raised_in(error: BaseException, module: str) -> bool:
    """Whether an error comes out of a module, or one below it."""
    place = error.__traceback__
    while place is not None:
        name = place.tb_frame.f_globals.get("__name__", "")
        if name == module or name.startswith(f"{module}."):
            return True
        place = place.tb_next
    return False


def check_outlines(outlines: Sequence[Any], plans: Sequence[Plan]) -> None:
    """Raises unless all runs return arrays of the same shapes and dtypes."""
    for outline, plan in zip(outlines, plans, strict=True):
        if outline != outlines[0]:
            first, this = (
                jax.tree.map(pytrees.describe, each[1]) for each in (outlines[0], outline)
            )
            raise ValueError(
                f"train returns {first} with {plans[0].run.choices}, and {this} with {plan.run.choices}: "
                "results in one table must have one shape. Return what is common to all, or sweep each by "
                "itself."
            )


def check_results(outlines: Sequence[Any], runs: int) -> None:
    """Raises a ValueError if the results of so many runs do not fit in the host's memory."""
    needed = runs * sum(math.prod(each.shape) * each.dtype.itemsize for each in outlines)
    free = 0.75 * _free_host_bytes()
    if needed > free:
        raise ValueError(
            f"the results of {counted(runs, 'run')} would take {_shown_bytes(needed)} of the host's "
            f"memory, and {_shown_bytes(free)} are free: let train return less, such as losses and no "
            "parameters."
        )


@dataclass(frozen=True)
class Program:
    """Compiled runs: how many in a call, and in how many threads it is called at once."""

    compiled: Any
    constants: Any
    size: int
    threads: int

    def pieces(self, plan: Plan, batches: Any) -> Iterator[Any]:
        """The results of a plan's runs on the host, piece by piece, in order."""
        total = len(plan.seeds)
        if self.threads > 1:
            batches = jax.device_put(batches)

        def run(start: int, arguments: Any) -> Any:
            piece = jax.device_get(self.compiled(self.constants, *arguments, batches))
            return jax.tree.map(lambda x: x[: total - start], piece)

        starts = range(0, total, self.size)
        every = (plan.piece(start, self.size) for start in starts)
        if self.threads == 1:
            yield from map(run, starts, every)
            return
        with ThreadPoolExecutor(self.threads) as executor:
            # Here and not in the threads, which do not see `with jax.enable_x64():`.
            every = [jax.device_put(each) for each in every]
            try:
                yield from executor.map(run, starts, every)
            finally:
                executor.shutdown(cancel_futures=True)  # Ctrl-C waits for what runs, and no more.


def program(
    traced: Traced, plan: Plan, batches: Any, batch_size: int | None, memory: float | None
) -> Program:
    """The compiled runs, as many at a time as is quick and fits."""
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("runs",)) if len(devices) > 1 else None
    everywhere = devices[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    constants = jax.device_put(traced.constants, everywhere)
    budget = _free_bytes(devices) if memory is None else memory
    runs = len(plan.seeds)
    size, threads = min(batch_size or runs, runs), 1
    if devices[0].platform == "cpu":
        if mesh is None:
            # XLA runs a small network on one core, however many there are.
            threads = min(_cores(), size)
            size = size // threads if size < runs else -(-runs // threads)
        if batch_size is None:
            size = min(size, max(64 * len(devices), -(-runs // 10)))
    while True:
        per_device = -(-size // len(devices))
        size = per_device * len(devices)
        threads = min(threads, -(-runs // size))
        piece = plan.piece(0, size)
        compiled = _all_runs.lower(traced, mesh, constants, *piece, batches).compile()
        needed = _bytes(compiled)
        if needed * threads <= budget:
            return Program(compiled, constants, size, threads)
        if batch_size is not None or (per_device == 1 and threads == 1):
            at_a_time = per_device * threads
            advice = (
                "give a smaller batch_size, or leave it out"
                if batch_size is not None and at_a_time > 1
                else "let train return less, or make the model or its batches smaller"
            )
            raise ValueError(
                f"{counted(at_a_time, 'run')} at a time would take {_shown_bytes(needed * threads)} of "
                f"memory per device, and {_shown_bytes(budget)} are "
                f"{'free' if memory is None else 'allowed by memory='}: {advice}."
            )
        fitting = int(0.95 * budget / threads / (needed / per_device))
        if threads > 1 and (fitting == 0 or per_device == 1):
            threads = 1
        else:
            size = max(1, min(fitting, per_device - 1)) * len(devices)


def _cores() -> int:
    """The cores of a CPU that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS and Windows.
        return os.cpu_count() or 1


@functools.partial(jax.jit, static_argnums=(0, 1))
def _all_runs(
    run: Traced, mesh: Mesh | None, constants: Any, numbers: Any, seeds: Any, batches: Any
) -> Any:
    """Many runs at once. Jitted here, once: the same sweep, called again, compiles nothing."""
    many = jax.vmap(run, in_axes=(None, 0, 0, None))
    if mesh is None:
        return many(constants, numbers, seeds, batches)
    split, everywhere = PartitionSpec("runs"), PartitionSpec()
    return jax.shard_map(
        many,
        mesh=mesh,
        in_specs=(everywhere, split, split, everywhere),
        out_specs=split,
        check_vma=False,  # Runs know nothing of each other.
    )(constants, numbers, seeds, batches)


def _bytes(compiled: Any) -> int:
    """What a program needs on each device, by XLA's own account."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _free_bytes(devices: Sequence[Any]) -> float:
    """Three quarters of what is free on each device; no limit where nobody says."""
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return 0.75 * _free_host_bytes() / len(devices)
    return 0.75 * min(
        each["bytes_limit"] - each.get("bytes_in_use", 0)
        for each in (device.memory_stats() for device in devices)
    )


def _free_host_bytes() -> float:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return math.inf


def _shown_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError

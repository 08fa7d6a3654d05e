"""adaptive_jax and optax side by side in one process, with PyTorch beside them where installed.

    python tests/benchmarks/against_optax.py              # everything: some ten minutes
    python tests/benchmarks/against_optax.py --quick      # two of the trees: some minutes
    python tests/benchmarks/against_optax.py --trees gpt --optimizers adam --columns step memory
    python tests/benchmarks/against_optax.py --optimizers all --trees gpt --columns trace step memory
    python tests/benchmarks/against_optax.py --json figures.json

Tables go to standard output and progress to standard error. No file is written unless ``--json``
names one.

How a figure is made
--------------------
Both libraries run through the same code: only the factory differs (``adaptive_jax.adam`` or
``optax.adam``), with the same arguments. Machines are noisy and drift, so no figure is taken from
one library first and from the other afterwards: a round measures each once, the next round in
another order, and rounds go on until the time for that column of the cell is used up
(``--budget``) and each has been the first at least twice (``--rounds`` fixes their number
instead). Of a warm call, a round takes the median of as many calls as fit into 20 ms.

A ratio is the median of the ratios that the rounds gave, ours over theirs: below 1, ours is faster
or smaller. A ``~`` in front of it says that their quartiles lie on both sides of 1: the rounds do
not tell the two apart. ``--detail`` prints these quartiles and the ratio of the two fastest rounds,
which suffers less from whatever else the machine is doing. The second table has the median times
of each, which under drift need not have the same ratio.

``--null`` puts optax in the place of adaptive_jax too. What differs from 1 then is the noise of
this machine, and a real ratio that is no further from 1 means nothing.

``--clock processor`` counts the time that the process spent on all processors, in place of the time
on the wall. On a busy machine that shows what tracing and compiling cost when the wall clock shows
what the neighbours do. It counts threads that wait by spinning as work, as those of torch do.

Python's garbage collector is held back during a measurement. The persistent compilation cache of
JAX is off.

The columns
-----------
update
    ``tx.update(gradients, state, params)`` outside ``jit``, waited for, with every cache warm; the
    state that comes out goes into the next call. What a notebook cell or a debugging session pays
    for a step. It says nothing about training inside ``jit``.
first
    The same call with every cache of JAX emptied before it (``jax.clear_caches``): tracing,
    compilation and one run. Building the optimizer and its state is not included. Neither are
    imports and the start of the compiler, which a new process pays once whatever the library.
trace
    ``jax.jit(update).trace(gradients, state, params)`` with a new function object and empty
    caches. Paid once for each new set of shapes, in Python. It grows with the number of arrays and
    not with their size.
retrace
    The same with another new function and a new optimizer of the same settings, in the caches that
    the first trace left: what another ``jit`` around the same optimizer costs later in the process.
    Measured together with ``trace``.
compile
    Lowering that trace to XLA and compiling it. Most of it is the compiler's own work on the
    program that it was given: libraries that state the same maths have little room to differ.
build
    trace + compile, added within each sample: the wait before a jitted update runs at last.
step
    Run time of ``jax.jit(step, donate_argnums=(0, 1))``, where ``step(params, state, gradients)``
    is the update followed by ``optax.apply_updates``. Gradients are given, so a model costs nothing
    here; in training the optimizer is a small part of a step, and whole steps lie closer to 1. On
    large arrays it is the bandwidth of memory that is measured, on many small ones the dispatch of
    arguments. Where buffers lie can change the time of one and the same program by a tenth, and
    donated ones would lie there for all rounds: they are copied before each sample.
memory
    ``memory_analysis()`` of that same compiled step, as XLA states it before running: temporaries
    (scratch memory beyond arguments and outputs), and in the last table also arguments and outputs
    (these share the arguments' memory where donated). Exact, so taken once. Some hundred bytes are
    scalars, and a ratio of theirs says nothing.
torch
    ``optimizer.step()`` of ``torch.optim`` on the same parameters and gradients, with
    ``foreach=True``, and with ``fused=True`` where the optimizer has it; the ratio is our jitted
    step over it. Taken in rounds of their own, with a short pause before each sample, so that the
    threads of torch do not disturb the column ``step``. Each framework uses the threads that it
    takes by itself. Those of torch wait for one another at every array: on a machine that is busy
    otherwise its times grow far more than those of JAX, and mean nothing (the line above the
    tables says how busy it was). RMSprop and Adagrad of torch add epsilon outside the root: one
    operation in another place. Left out, with a line that says so, where torch is not
    installed or does not run on the device of JAX.

After the first step the parameters of all contenders are compared. A benchmark of optimizers that
compute different things is worth nothing, so a difference is an error, but for those under `UNLIKE`,
with the reason: where optax departs from the paper, as `tests/departures` shows.

``--optimizers all`` are all that both have, optax.contrib's among them, and that need nothing but
gradients.

The trees
---------
array   one array of 20 million float32
gpt     a GPT of 42 million parameters in 146 arrays: token and position embeddings, and 12 layers
        of 12 arrays that end in a norm of their own, as in the first GPT
many    1,000 arrays of 3,500
small   the structure of gpt with a width of 16: 146 arrays, none larger than 1,024
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Clock = Callable[[], float]
Samples = list[dict[str, float]]
Sampler = Callable[[], dict[str, float]]

LEARNING_RATE = 1e-3
ARGUMENTS: dict[str, dict[str, float]] = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"decay": 0.9, "eps": 1e-8},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2},
    "adagrad": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    # So that both compute the same: see tests/departures.
    "adan": {"b2": 0.5, "eps_root": 0.0},
    "optimistic_adam": {"nesterov": True},
    "optimistic_adam_v2": {"nesterov": True},
}
"""What others than the defaults both are given."""
UNLIKE = {
    "adopt": "its first update moves nothing, in both",
    "rprop": "optax's is one step late",
    "yogi": "optax's averages start elsewhere, and are corrected",
}
"""Whose parameters are not compared after the first step, and why."""
# The class in torch.optim, and the same settings by its names.
TORCH_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {"alpha": 0.9, "eps": 1e-8}),
    "adam": ("Adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adamw": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 0.1, "eps": 1e-7}),
}
# RMSprop has no fused implementation in torch.
TORCH_IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("foreach", "fused"),
    "rmsprop": ("foreach",),
    "adam": ("foreach", "fused"),
    "adamw": ("foreach", "fused"),
    "adagrad": ("foreach", "fused"),
}

TREES = ("array", "gpt", "many", "small")
COLUMNS = ("update", "first", "trace", "compile", "step", "memory", "torch")
TIMES = (
    "update",
    "first",
    "trace",
    "retrace",
    "compile",
    "build",
    "step",
    "torch foreach",
    "torch fused",
)
MEMORY = ("temporaries", "arguments", "outputs")
CLOCKS: dict[str, Clock] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}
SAMPLE_SECONDS = 0.02
TORCH_PAUSE_SECONDS = 0.01
# A turn is as many rounds as there are contenders: each is the first once.
LEAST_TURNS = 2
MOST_TURNS = 100


# The trees


def gpt_shapes(*, width: int, vocabulary: int, positions: int, layers: int = 12) -> PyTree:
    """Shapes of a GPT whose layers end in a norm: 2 + 12 * layers arrays."""
    layer = {
        "attention": {
            "query_key_value": {"kernel": (width, 3 * width), "bias": (3 * width,)},
            "projection": {"kernel": (width, width), "bias": (width,)},
        },
        "attention_norm": {"scale": (width,), "bias": (width,)},
        "feed_forward": {
            "expand": {"kernel": (width, 4 * width), "bias": (4 * width,)},
            "contract": {"kernel": (4 * width, width), "bias": (width,)},
        },
        "feed_forward_norm": {"scale": (width,), "bias": (width,)},
    }
    return {
        "token_embedding": (vocabulary, width),
        "position_embedding": (positions, width),
        "layers": [layer] * layers,
    }


def tree_shapes(tree: str) -> PyTree:
    match tree:
        case "array":
            return (20_000_000,)
        case "gpt":
            return gpt_shapes(width=512, vocabulary=8_000, positions=512)
        case "many":
            return [(3_500,)] * 1_000
        case "small":
            return gpt_shapes(width=16, vocabulary=64, positions=32)
    raise ValueError(f"unknown tree {tree!r}: it must be one of {', '.join(TREES)}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Parameters and gradients that every contender is given."""

    tree: str
    params: PyTree
    gradients: PyTree

    @property
    def arrays(self) -> int:
        return len(jax.tree.leaves(self.params))

    @property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def make_problem(tree: str) -> Problem:
    generator = np.random.default_rng(0)

    def param(shape: tuple[int, ...]) -> jax.Array:
        return jnp.array(0.02 * generator.standard_normal(shape, dtype=np.float32))

    def gradient(shape: tuple[int, ...]) -> jax.Array:
        # Away from zero, so that two places for epsilon make no difference that the comparison of
        # results would see. The values have no influence on the time.
        magnitude = 0.5 + generator.random(shape, dtype=np.float32)
        return jnp.array(
            np.where(generator.random(shape, dtype=np.float32) < 0.5, -1, 1) * magnitude
        )

    shapes = tree_shapes(tree)

    def is_shape(node: PyTree) -> bool:
        return isinstance(node, tuple)

    return Problem(
        tree,
        params=jax.tree.map(param, shapes, is_leaf=is_shape),
        gradients=jax.tree.map(gradient, shapes, is_leaf=is_shape),
    )


# Measuring


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def empty_caches() -> None:
    """Forget every trace and compilation, and pay for throwing them away now."""
    jax.clear_caches()
    if "adaptive_jax._core.pieces" in sys.modules:
        sys.modules["adaptive_jax._core.pieces"]._cuts.clear()
    gc.collect()


def seconds(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def repeated(
    figure: str,
    call: Callable[[], object],
    clock: Clock,
    prepare: Callable[[], object] = lambda: None,
) -> Sampler:
    """A sampler of a warm ``call``: the median of as many calls as make a sample long enough."""
    prepare()
    call()
    calls = max(
        1, math.ceil(SAMPLE_SECONDS / min(seconds(call, time.perf_counter) for _ in range(3)))
    )

    def sample() -> dict[str, float]:
        prepare()
        with collector_paused():
            return {figure: statistics.median(seconds(call, clock) for _ in range(calls))}

    return sample


def interleave(
    samplers: dict[str, Sampler], budget: float, rounds: int | None
) -> dict[str, Samples]:
    """Take samples in rounds: each contender once a round, beginning with another each time."""
    names = list(samplers)
    samples: dict[str, Samples] = {name: [] for name in names}
    deadline = time.perf_counter() + budget
    for taken in itertools.count():
        turns, first = divmod(taken, len(names))
        if rounds is not None:
            done = taken == rounds
        else:
            # Only when each has been first as often as the others.
            late = time.perf_counter() > deadline
            done = first == 0 and (turns >= MOST_TURNS or (late and turns >= LEAST_TURNS))
        if done:
            return samples
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
    raise AssertionError("count() does not end")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of one cell: what each round gave for ours and for another contender."""

    ours: list[float]
    other: list[float]
    unit: str

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.other)

    @property
    def ratios(self) -> list[float]:
        """Round by round. Nothing over nothing is 1, and something over nothing infinite."""
        pairs = zip(self.ours, self.other, strict=True)
        return [a / b if b else 1.0 if a == 0 else math.inf for a, b in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float] | None:
        if len(self.ratios) < 2:
            return None
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def undecided(self) -> bool:
        return self.quartiles is not None and self.quartiles[0] < 1 < self.quartiles[1]

    def as_json(self) -> dict[str, Any]:
        # JSON has no infinity.
        ratio = self.ratio if math.isfinite(self.ratio) else None
        medians = dict(zip(("ours", "other"), self.medians, strict=True))
        rounds = {"ours": self.ours, "other": self.other}
        return {
            "unit": self.unit,
            "ratio": ratio,
            "quartiles": self.quartiles,
            "medians": medians,
            "rounds": rounds,
        }


def compare(ours: Samples, other: Samples) -> dict[str, Figure]:
    """Figures of two contenders whose samples were taken in the same rounds."""
    return {
        name: Figure([sample[name] for sample in ours], [sample[name] for sample in other], "s")
        for name in ours[0]
    }


# What a contender is asked to do

MakeOptimizer = Callable[[], optax.GradientTransformationExtraArgs]


def update_sampler(make: MakeOptimizer, problem: Problem, clock: Clock) -> Sampler:
    tx = make()
    state = tx.init(problem.params)

    def call() -> None:
        nonlocal state
        updates, state = tx.update(problem.gradients, state, problem.params)
        jax.block_until_ready((updates, state))

    return repeated("update", call, clock)


def first_call_sampler(make: MakeOptimizer, problem: Problem, clock: Clock) -> Sampler:
    def sample() -> dict[str, float]:
        tx = make()
        state = jax.block_until_ready(tx.init(problem.params))

        def call() -> None:
            jax.block_until_ready(tx.update(problem.gradients, state, problem.params))

        empty_caches()
        with collector_paused():
            return {"first": seconds(call, clock)}

    return sample


def build_sampler(
    make: MakeOptimizer, problem: Problem, clock: Clock, with_compile: bool
) -> Sampler:
    """Times of tracing the update, of compiling that trace and of tracing once more."""

    def new_update() -> Callable[..., PyTree]:
        tx = make()

        def update(gradients: PyTree, state: PyTree, params: PyTree) -> PyTree:
            return tx.update(gradients, state, params)

        return update

    def sample() -> dict[str, float]:
        state = jax.block_until_ready(make().init(problem.params))
        arguments = (problem.gradients, state, problem.params)
        update, update_again = new_update(), new_update()
        empty_caches()
        with collector_paused():
            start = clock()
            traced = jax.jit(update).trace(*arguments)
            after_trace = clock()
            if with_compile:
                traced.lower().compile()
            end = clock()
            retrace = seconds(lambda: jax.jit(update_again).trace(*arguments), clock)
        figures = {"trace": after_trace - start, "retrace": retrace}
        if with_compile:
            figures |= {"compile": end - after_trace, "build": end - start}
        return figures

    return sample


class JittedStep:
    """Update and apply_updates in one jit that takes over params and state."""

    def __init__(self, make: MakeOptimizer, problem: Problem):
        tx = make()

        def step(params: PyTree, state: PyTree, gradients: PyTree) -> tuple[PyTree, PyTree]:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        # Donated buffers are gone after the call, and the other contenders still need theirs.
        self.params = jax.tree.map(jnp.copy, problem.params)
        self.state = tx.init(self.params)
        self.gradients = problem.gradients
        self.step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> None:
        self.params, self.state = self.step(self.params, self.state, self.gradients)
        jax.block_until_ready((self.params, self.state))

    def renew(self) -> None:
        """Move to other buffers: donated ones stay where they are, well or badly placed."""
        self.params, self.state = jax.tree.map(jnp.copy, (self.params, self.state))
        self()

    def memory(self) -> dict[str, int]:
        compiled = self.step.lower(self.params, self.state, self.gradients).compile()
        analysis = compiled.memory_analysis()
        return {
            "temporaries": analysis.temp_size_in_bytes,
            "arguments": analysis.argument_size_in_bytes,
            "outputs": analysis.output_size_in_bytes,
        }

    def leaves(self) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self.params)]


class TorchStep:
    """``optimizer.step()`` of torch.optim on the parameters and gradients of the problem."""

    def __init__(self, optimizer: str, implementation: str, problem: Problem):
        import torch

        self.device = torch_device()
        self.params = []
        for param, gradient in zip(
            jax.tree.leaves(problem.params), jax.tree.leaves(problem.gradients), strict=True
        ):
            # torch.tensor copies: torch steps in place, and may not write into the arrays of JAX.
            tensor = torch.tensor(np.asarray(param), device=self.device, requires_grad=True)
            tensor.grad = torch.tensor(np.asarray(gradient), device=self.device)
            self.params.append(tensor)
        class_name, arguments = TORCH_ARGUMENTS[optimizer]
        make = getattr(torch.optim, class_name)
        self.optimizer = make(self.params, lr=LEARNING_RATE, **arguments, **{implementation: True})
        self.wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None

    def __call__(self) -> None:
        self.optimizer.step()
        self.wait()

    def renew(self) -> None:
        self()

    def leaves(self) -> list[np.ndarray]:
        return [param.detach().cpu().numpy() for param in self.params]


def check_same_step(
    problem: Problem, ours: JittedStep, other: JittedStep | TorchStep, name: str
) -> None:
    """Both have stepped as often: their parameters must be where the other's are."""
    start = [np.asarray(leaf) for leaf in jax.tree.leaves(problem.params)]
    mine, theirs = ours.leaves(), other.leaves()

    def distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
        # NumPy's maximum, which a NaN in any array reaches; Python's may pass it by.
        return float(np.max([np.abs(a - b).max() for a, b in zip(left, right, strict=True)]))

    moved, apart = distance(mine, start), distance(mine, theirs)
    # Written so that a NaN fails as well.
    if not (moved > 0 and apart <= 1e-3 * moved):
        raise RuntimeError(
            f"ours and {name} do not compute the same on the tree {problem.tree!r}: after one step "
            f"the parameters are {apart:.3g} apart, where the step itself was {moved:.3g}"
        )


# One cell: one optimizer on one tree


@dataclasses.dataclass(frozen=True)
class Settings:
    columns: tuple[str, ...]
    budget: float
    rounds: int | None
    null: bool
    clock: str


def optimizer_factory(library: Any, optimizer: str) -> MakeOptimizer:
    make = getattr(library, optimizer, None) or getattr(library.contrib, optimizer)
    return functools.partial(make, LEARNING_RATE, **ARGUMENTS.get(optimizer, {}))


def shared_optimizers() -> list[str]:
    """All whole optimizers that both have, and that need nothing but gradients and parameters."""
    import adaptive_jax as aj
    from adaptive_jax.rules._factory import CATALOGUE

    def needs_more(name: str) -> bool:
        nodes = jax.tree.leaves(
            optimizer_factory(aj, name)(), is_leaf=lambda x: isinstance(x, aj.Rule)
        )
        return any(isinstance(node, aj.Rule) and node.extra_args for node in nodes)

    names = [name for name, algorithm in CATALOGUE.items() if algorithm.whole]
    names = [name for name in names if hasattr(optax, name) or hasattr(optax.contrib, name)]
    return [name for name in names if not needs_more(name)]


def contenders(optimizer: str, null: bool) -> dict[str, MakeOptimizer]:
    if null:
        ours = optax
    else:
        import adaptive_jax as ours
    return {
        "ours": optimizer_factory(ours, optimizer),
        "optax": optimizer_factory(optax, optimizer),
    }


def compare_samplers(
    make_sampler: Callable[[MakeOptimizer], Sampler],
    makes: dict[str, MakeOptimizer],
    settings: Settings,
) -> dict[str, Figure]:
    samplers = {name: make_sampler(make) for name, make in makes.items()}
    samples = interleave(samplers, settings.budget, settings.rounds)
    return compare(samples["ours"], samples["optax"])


def compare_memory(ours: JittedStep, other: JittedStep) -> dict[str, Figure]:
    mine, theirs = ours.memory(), other.memory()
    return {name: Figure([mine[name]], [theirs[name]], "B") for name in mine}


def compare_steps(
    optimizer: str, problem: Problem, makes: dict[str, MakeOptimizer], settings: Settings
) -> dict[str, Figure]:
    """Everything that needs the jitted step, so that it is compiled once only."""
    figures: dict[str, Figure] = {}
    ours, other = (JittedStep(make, problem) for make in makes.values())
    if "memory" in settings.columns:
        figures |= compare_memory(ours, other)
    ours()
    if "step" in settings.columns:
        other()
        if optimizer not in UNLIKE:
            check_same_step(problem, ours, other, "optax")
        clock = CLOCKS[settings.clock]
        samplers = {
            "ours": repeated("step", ours, clock, ours.renew),
            "optax": repeated("step", other, clock, other.renew),
        }
        samples = interleave(samplers, settings.budget, settings.rounds)
        figures |= compare(samples["ours"], samples["optax"])
    # Its arrays are as large as ours, and torch is about to need the room.
    del other
    if "torch" in settings.columns:
        figures |= compare_torch(optimizer, problem, ours.step, makes["ours"], settings)
    return figures


def settle(step: JittedStep | TorchStep) -> Callable[[], None]:
    """Before a sample beside torch: wait until threads that spin for more work have given up."""

    def prepare() -> None:
        time.sleep(TORCH_PAUSE_SECONDS)
        step.renew()

    return prepare


def compare_torch(
    optimizer: str, problem: Problem, compiled: Any, make: MakeOptimizer, settings: Settings
) -> dict[str, Figure]:
    if optimizer not in TORCH_IMPLEMENTATIONS:
        return {}
    ours = JittedStep(make, problem)
    ours.step = compiled
    ours()
    steps: dict[str, JittedStep | TorchStep] = {"ours": ours}
    for implementation in TORCH_IMPLEMENTATIONS[optimizer]:
        steps[implementation] = TorchStep(optimizer, implementation, problem)
        steps[implementation]()
        check_same_step(problem, ours, steps[implementation], f"torch {implementation}")
    clock = CLOCKS[settings.clock]
    samplers = {name: repeated("step", step, clock, settle(step)) for name, step in steps.items()}
    samples = interleave(samplers, settings.budget, settings.rounds)
    theirs = [name for name in samples if name != "ours"]
    return {f"torch {name}": compare(samples["ours"], samples[name])["step"] for name in theirs}


def measure_cell(optimizer: str, problem: Problem, settings: Settings) -> dict[str, Figure]:
    makes = contenders(optimizer, settings.null)
    clock = CLOCKS[settings.clock]
    wanted = set(settings.columns)
    makers: list[Callable[[MakeOptimizer], Sampler]] = []
    if "update" in wanted:
        makers.append(lambda make: update_sampler(make, problem, clock))
    if "first" in wanted:
        makers.append(lambda make: first_call_sampler(make, problem, clock))
    if wanted & {"trace", "compile"}:
        with_compile = "compile" in wanted
        makers.append(lambda make: build_sampler(make, problem, clock, with_compile))
    figures: dict[str, Figure] = {}
    for make_sampler in makers:
        figures |= compare_samplers(make_sampler, makes, settings)
    if wanted & {"step", "memory", "torch"}:
        figures |= compare_steps(optimizer, problem, makes, settings)
    empty_caches()
    return figures


@dataclasses.dataclass(frozen=True)
class Cell:
    tree: str
    optimizer: str
    arrays: int
    parameters: int
    figures: dict[str, Figure]

    def as_json(self) -> dict[str, Any]:
        figures = {name: figure.as_json() for name, figure in self.figures.items()}
        return {
            "tree": self.tree,
            "optimizer": self.optimizer,
            "arrays": self.arrays,
            "parameters": self.parameters,
            "figures": figures,
        }


def warm_up(optimizers: Sequence[str], null: bool) -> None:
    """Imports and the compiler start at their first use: that is nobody's first call."""
    problem = Problem("one number", jnp.ones(1), jnp.ones(1))
    for optimizer in optimizers:
        for make in contenders(optimizer, null).values():
            first_call_sampler(make, problem, time.perf_counter)()
            build_sampler(make, problem, time.perf_counter, with_compile=True)()


def measure(trees: Sequence[str], optimizers: Sequence[str], settings: Settings) -> list[Cell]:
    start = time.perf_counter()
    warm_up(optimizers, settings.null)
    cells = []
    total = len(trees) * len(optimizers)
    for tree in trees:
        problem = make_problem(tree)
        for optimizer in optimizers:
            elapsed = time.perf_counter() - start
            report(f"[{len(cells) + 1}/{total}, {elapsed:4.0f} s] {optimizer} on {tree}")
            figures = measure_cell(optimizer, problem, settings)
            cells.append(Cell(tree, optimizer, problem.arrays, problem.parameters, figures))
    report(f"[done, {time.perf_counter() - start:4.0f} s]")
    return cells


# Environment


def torch_device() -> str | None:
    """The device on which torch meets JAX, or None where it cannot."""
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    return "cuda" if backend == "gpu" and torch.cuda.is_available() else None


def reason_without_torch() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: its columns are left out"
    if torch_device() is None:
        return f"PyTorch does not run on the {jax.default_backend()} that JAX uses: left out"
    return None


def environment(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "processor": platform.machine(),
        "processors": os.cpu_count(),
        "load at the start": round(os.getloadavg()[0], 1),
        "device": jax.devices()[0].device_kind,
        "clock": settings.clock,
        "backend": jax.default_backend(),
    }
    if settings.null:
        found["ours"] = "optax (null comparison)"
    else:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["adaptive_jax"] = metadata.version("adaptive_jax")
    if "torch" in settings.columns:
        import torch

        found["torch"] = torch.__version__
        found["torch threads"] = torch.get_num_threads()
    return found


# Tables


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def format_ratio(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if math.isinf(figure.ratio):
        return "more"
    return f"{'~' if figure.undecided else ''}{figure.ratio:.2f}"


def format_quantity(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value:.0f} B"
    milliseconds = 1e3 * value
    digits = max(0, 2 - math.floor(math.log10(milliseconds))) if milliseconds > 0 else 0
    return f"{milliseconds:.{min(digits, 3)}f}"


def format_values(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    ours, other = (format_quantity(value, figure.unit) for value in figure.medians)
    return f"{ours} | {other}"


def print_table(
    cells: Sequence[Cell], names: Sequence[str], form: Callable[[Figure | None], str]
) -> None:
    rows = [["tree", "optimizer", *names]]
    rows += [
        [cell.tree, cell.optimizer, *(form(cell.figures.get(name)) for name in names)]
        for cell in cells
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        print("  ".join(left + right))


def print_rounds(cells: Sequence[Cell]) -> None:
    for cell in cells:
        for name, figure in cell.figures.items():
            if figure.quartiles is not None:
                low, high = figure.quartiles
                fastest = min(figure.ours) / min(figure.other)
                print(
                    f"{cell.tree:6} {cell.optimizer:8} {name:14} {format_ratio(figure):>6}  "
                    f"quartiles {low:.2f} to {high:.2f}, fastest {fastest:.2f}, "
                    f"{len(figure.ratios)} rounds"
                )


def print_tables(cells: Sequence[Cell], found: dict[str, Any], detail: bool) -> None:
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    present = {name for cell in cells for name in cell.figures}
    times = [name for name in TIMES if name in present]
    memory = [name for name in MEMORY if name in present]
    compared = [name for name in (*TIMES, "temporaries") if name in present]
    print("\nours / theirs (optax, or torch where named): below 1, ours is faster or smaller")
    print_table(cells, compared, format_ratio)
    if times:
        print("\nmedians, ours | theirs, in milliseconds")
        print_table(cells, times, format_values)
    if memory:
        print("\nmemory of the step, ours | theirs")
        print_table(cells, memory, format_values)
    if detail:
        print("\nthe rounds behind the medians")
        print_rounds(cells)


def write_json(
    path: Path, cells: Sequence[Cell], found: dict[str, Any], settings: Settings
) -> None:
    figures = {
        "environment": found,
        "settings": dataclasses.asdict(settings),
        "cells": [cell.as_json() for cell in cells],
    }
    path.write_text(json.dumps(figures, indent=2) + "\n")


# Command line


def at_least(least: float, kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {text}")
        return value

    return parse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="adaptive_jax beside optax; the module's docstring explains each figure"
    )
    add = parser.add_argument
    add("--trees", nargs="+", choices=TREES, help="default: all; with --quick array and small")
    add("--optimizers", nargs="+", default=["sgd", "rmsprop", "adam"], help="names, or all of both")
    add("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="default: all")
    add(
        "--budget",
        type=at_least(0, float),
        help="seconds for each column of a cell (default 4, quick 1.5)",
    )
    add("--rounds", type=at_least(2, int), help="exactly so many rounds, whatever they take")
    add("--quick", action="store_true", help="the trees array and small, with a smaller budget")
    add("--no-torch", action="store_true", help="leave PyTorch out")
    add("--null", action="store_true", help="optax against itself: shows the noise of this machine")
    add("--clock", choices=tuple(CLOCKS), default="wall", help="default: wall")
    add("--detail", action="store_true", help="also print the spread of the rounds")
    add(
        "--json", type=Path, metavar="PATH", help="also write every figure there (default: no file)"
    )
    return parser


def chosen_columns(arguments: argparse.Namespace) -> tuple[str, ...]:
    columns = [name for name in COLUMNS if name in arguments.columns]
    if arguments.no_torch:
        columns = [name for name in columns if name != "torch"]
    if "torch" in columns and (reason := reason_without_torch()):
        print(reason)
        columns.remove("torch")
    return tuple(columns)


def main() -> None:
    arguments = make_parser().parse_args()
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise SystemExit(f"--json {arguments.json}: there is no directory {arguments.json.parent}")
    jax.config.update("jax_enable_compilation_cache", False)
    budget = arguments.budget
    if budget is None:
        budget = 1.5 if arguments.quick else 4.0
    settings = Settings(
        columns=chosen_columns(arguments),
        budget=budget,
        rounds=arguments.rounds,
        null=arguments.null,
        clock=arguments.clock,
    )
    found = environment(settings)
    # Modules stay for good: to look through them at each collection would only take time.
    gc.freeze()
    trees = arguments.trees or (["array", "small"] if arguments.quick else TREES)
    optimizers = arguments.optimizers
    if optimizers == ["all"]:
        optimizers = shared_optimizers()
    for unknown in (name for name in optimizers if name not in shared_optimizers()):
        raise SystemExit(f"{unknown}: both have {', '.join(shared_optimizers())}")
    # Where optax says that one is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    cells = measure(trees, optimizers, settings)
    print_tables(cells, found, arguments.detail)
    if arguments.json:
        write_json(arguments.json, cells, found, settings)


if __name__ == "__main__":
    main()

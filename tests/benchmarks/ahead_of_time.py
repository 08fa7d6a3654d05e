"""What the compilers for TPUs and GPUs make of a step, on a machine that has neither.

    pip install -e '.[tpu]'      # for targets tpu:…; 1.3 GB: better in an environment of its own
    pip install -e '.[cuda]'     # for targets cuda:…; 1.2 GB
    python tests/benchmarks/ahead_of_time.py tpu:v5e:2x2 cuda:h100
    python tests/benchmarks/ahead_of_time.py tpu:v5e:2x2 --storages optax int8 --trees gpt
    python tests/benchmarks/ahead_of_time.py cuda:h100:4 --split --storages int8 --json figures.json
    python tests/benchmarks/ahead_of_time.py cpu                    # the processor here, for comparison
    python tests/benchmarks/ahead_of_time.py cuda:h100 --trees layer --storages float32 --optimizers soap
    python tests/benchmarks/ahead_of_time.py tpu:v5e:2x2 --alone 768   # what matrix methods are made of
    python tests/benchmarks/ahead_of_time.py tpu:v5e:2x2 --trees gpt \
        --options xla_vf_vmem_max_outstanding_prefetches=0              # of the compiler

A target is a backend and a topology: `tpu:v5e:2x2`, `tpu:v5p:2x2x1`, `tpu:v6e:2x2`, `cuda:h100`, and
`cuda:h100:4` for four of them. Nothing is run, so nothing is timed but the compiler. Prints a table per
target. Where `--json` names a file, it writes the same figures into it, in the place of those of the same
cases; `tests/benchmarks/ahead_of_time.json` is kept so.

One step with donated parameters and state is compiled: `update` is `tx.update` and `apply_updates`,
`train_step` is `aj.train_step` of a loss whose gradients are the batch, so that a model costs nothing.
`data_parallel` is `aj.train_step` of a network whose batch is divided over all devices of the target, and
`zero` the same with the optimizer's state divided too, `shard="x"`; with `_in_parts`, gradients are
accumulated over four. The network has a part in their figures, and the JSON says in "wire" how many bytes
each device sends per parameter.

B/param      bytes that a step reads from and writes to the device's memory, per parameter: each kernel
             each operand and each result once (`hlo_traffic.py`)
floor        the same for a step that reads parameters, gradients and state once, and writes parameters
             and state once
x floor      their quotient: 1 is as good as it gets
temporaries  bytes of scratch memory per parameter, as the compiler states them
kernels      programs that are started in a step; scalars: those whose results are single numbers
collectives  what devices exchange in a step, and the megabytes of the results on one device
FLOP         operations on floating-point numbers per parameter of `tx.update` before it is optimized: of
             both sides of a branch, of a loop once, and without those of eigenvalues and triangular solves
compile      seconds of all processors together to compile, after tracing and lowering

Storages are those of Adam's state: names of `storage=`, two of them joined by "+" for both moments;
"optax" is optax's Adam. "weights24" keeps parameters in 24 bits, `aj.compensate(…, "int8")`.

Trees: square (4096, 4096), wide (4096, 4864), flat (4096 · 4864), deep (64, 512, 640), head (768, 50257),
odd (4001, 5003), gpt (124 million parameters in 146 arrays), layer (12 arrays: a layer of it), many (1,000
arrays of 3,500), some (12 arrays of 4 shapes) and thin (a layer of width 256 in the place of 768).

The JSON also says what is in the program of float64, and of calls of the host: neither should be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Read when libtpu is loaded: that there is no device to ask, and where its log goes.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_LOG_DIR", tempfile.gettempdir())
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from against_optax import gpt_shapes
from hlo_traffic import traffic
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import adaptive_jax as aj

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The device as XLA's GPU compiler wants to know it."""

GPUS = {"h100": H100}
TPUS = ("v4:2x2x1", "v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v6e:2x2", "v6e:4x4")
PACKAGES = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}

SHAPES: dict[str, Any] = {
    "square": (4096, 4096),
    "wide": (4096, 4864),
    "flat": (4096 * 4864,),
    "deep": (64, 512, 640),
    "head": (768, 50_257),
    "odd": (4001, 5003),
    "gpt": gpt_shapes(width=768, vocabulary=50_257, positions=1024),
    "layer": gpt_shapes(width=768, vocabulary=1, positions=1, layers=1)["layers"],
    "many": [(3_500,)] * 1_000,
    "some": [(1024, 4096), (4096, 1024), (1024, 1024), (40_000,)] * 3,
    "thin": gpt_shapes(width=256, vocabulary=1, positions=1, layers=1)["layers"],
}
STORAGES = (
    "optax", "float32", "bfloat16", "int8", "int8+int16", "int8_tiles", "bfloat16+factored",
)  # fmt: skip
RATE = 1e-3
HOST_CALL = (
    r'custom_call_target="[^"]*(?:callback|python|lapack|Host)|\b(?:infeed|outfeed|send|recv)\('
)
ROUND = 4
PARTS = 4
"""Into how many a batch is cut where gradients are accumulated."""


def devices_of(target: str) -> list[Any]:
    """The devices of a target, of which none has to be here.

    Raises a ValueError for a topology that is not known, an ImportError where the compiler of the backend
    is not installed.
    """
    backend, _, topology = target.partition(":")
    if backend == "cpu" and not topology:
        return jax.devices("cpu")
    if backend not in PACKAGES:
        raise ValueError(
            f"the target {target!r} begins with {backend!r}: it must be cpu, or begin with tpu: or cuda:."
        )
    known = TPUS if backend == "tpu" else (*GPUS, *(f"{name}:N" for name in GPUS))
    name, _, count = topology.partition(":")
    if backend == "cuda" and (name not in GPUS or not (count or "1").isdecimal()):
        raise ValueError(
            f"the topology {topology!r} of the target {target!r} is not known: it is one of "
            f"{', '.join(known)}, with N devices."
        )
    try:
        __import__(PACKAGES[backend])
    except ImportError as error:
        raise ImportError(
            f"the target {target!r} needs {PACKAGES[backend]}, the compiler for it: pip install "
            f"'adaptive_jax[{backend}]', in an environment of its own."
        ) from error
    try:
        if backend == "cuda":
            described = topologies.get_topology_desc(
                platform="cuda", target_config=GPUS[name], topology=f"1x1x{count or 1}"
            )
        else:
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # Of another class for each backend and version.
        raise ValueError(
            f"the topology {topology!r} of the target {target!r} is not known: it is one like "
            f"{', '.join(known)}. ({error!s:.200})"
        ) from error
    return list(described.devices)


def make_optimizer(name: str, storage: str) -> Any:
    """An optimizer by its name, with a storage by its name; optax's own for "optax"."""
    if storage == "optax":
        return getattr(optax, name)(RATE)
    factory = getattr(aj, name)
    if storage == "weights24":
        return aj.compensate(factory(RATE), "int8")
    if storage == "weights24+int8":
        return aj.compensate(factory(RATE, storage="int8"), "int8")
    first, _, second = storage.partition("+")
    return factory(RATE, storage={"mu": first, "nu": second} if second else first)


def params_of(tree: str, storage: str) -> Any:
    dtype = jnp.bfloat16 if storage.startswith("weights24") else jnp.float32
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        SHAPES[tree],
        is_leaf=lambda x: isinstance(x, tuple),
    )


def split_over(devices: list[Any]) -> Callable[[Any], Any]:
    """Where an array lies: split along the first axis that so many devices divide, else on all."""
    mesh = Mesh(np.array(devices), ("x",))

    def sharding(x: Any) -> NamedSharding:
        axes = [i for i, size in enumerate(x.shape) if size % len(devices) == 0 and x.size >= 4096]
        spec = [None] * axes[0] + ["x"] if axes else []
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def lowered_update(tx: Any, params: Any, place: Callable[[Any], Any]) -> Any:
    """`tx.update` and `apply_updates`, with donated parameters and state."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    arguments = placed((params, jax.eval_shape(tx.init, params), params), place)
    where = jax.tree.map(lambda x: x.sharding, arguments[:2])
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=where).lower(*arguments)


def lowered_train_step(tx: Any, params: Any, place: Callable[[Any], Any]) -> Any:
    """The same through `aj.train_step`, of a loss whose gradients are the batch."""

    def loss(params: Any, batch: Any) -> Any:
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(batch), strict=True)
        return sum(jnp.vdot(x, y).astype(jnp.float32) for x, y in pairs)

    state = jax.eval_shape(
        lambda params: aj.TrainState.create(params, tx, copy=False).replace(tx=optax.identity()),
        params,
    )
    state = placed(state, place).replace(tx=tx)
    return aj.train_step(loss, metrics=()).lower(state, placed(params, place)).lowered


def placed(tree: Any, place: Callable[[Any], Any]) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


STEPS = {"update": lowered_update, "train_step": lowered_train_step}


def lowered_over_devices(
    tx: Any, params: Any, devices: list[Any], shard: str | None = None, accumulate: int = 1
) -> Any:
    """`aj.train_step` of a network of one layer for each array, on parameters that each device has.

    The rows of the batch are divided. shard: "x" to divide the state too.
    """
    mesh = Mesh(np.array(devices), ("x",))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("x",)))

    def loss(params: Any, batch: Any) -> Any:
        layers = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(params)]
        return sum(jnp.mean(jnp.tanh(batch[:, : x.shape[0]] @ x)) for x in layers)

    params = placed(params, lambda _: everywhere)
    state = jax.eval_shape(
        lambda params: aj.TrainState.create(params, tx, copy=False).replace(tx=optax.identity()),
        params,
    )
    opt_state = state.opt_state
    state = placed(state, lambda _: everywhere).replace(tx=tx)
    if shard is not None:
        places = iter(jax.tree.leaves(aj.state_shardings(tx, params, shard)))
        state = state.replace(opt_state=placed(opt_state, lambda _: next(places)))
    longest = max(x.shape[0] for x in jax.tree.leaves(params))
    shape = (8 * len(devices) * PARTS, longest)
    batch = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    step = aj.train_step(loss, metrics=(), accumulate=accumulate)
    return step.lower(state, batch).lowered


OVER_DEVICES: dict[str, dict[str, Any]] = {
    "data_parallel": {},
    "data_parallel_in_parts": {"accumulate": PARTS},
    "zero": {"shard": "x"},
    "zero_in_parts": {"shard": "x", "accumulate": PARTS},
}


def on_the_wire(collectives: Mapping[str, tuple[int, float]], devices: int) -> float:
    """The bytes that each device sends, by rings."""
    passes = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "all-to-all": 1}
    share = (devices - 1) / devices
    return sum(passes.get(kind, 1) * share * size for kind, (_, size) in collectives.items())


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def operations(tx: Any, params: Any) -> float:
    """The FLOP of an update before anything is optimized: the compilers for GPUs state none."""
    state = jax.eval_shape(tx.init, params)
    found = jax.jit(lambda *arguments: tx.update(*arguments)).lower(params, state, params)
    return (found.cost_analysis() or {}).get("flops", 0.0)


def figures(
    target: str,
    devices: list[Any],
    tree: str,
    storage: str,
    step: str,
    name: str,
    split: bool,
    options: dict[str, str],
) -> dict[str, Any]:
    """What the compiler makes of one step."""
    params, tx = params_of(tree, storage), make_optimizer(name, storage)
    state = jax.eval_shape(tx.init, params)
    place = split_over(devices) if split else lambda x: SingleDeviceSharding(devices[0])
    clock = time.process_time  # Whatever else the machine does.
    start = clock()
    if step in OVER_DEVICES:
        lowered = lowered_over_devices(tx, params, devices, **OVER_DEVICES[step])
    else:
        lowered = STEPS[step](tx, params, place)
    traced = clock()
    compiled = lowered.compile(compiler_options=options)
    done = clock()
    text = compiled.as_text()
    found = traffic(text)
    share = len(devices) if split else 1
    count = sum(x.size for x in jax.tree.leaves(params)) / share
    floor = (3 * nbytes(params) + 2 * nbytes(state)) / share
    memory = compiled.memory_analysis()
    return {
        "target": target,
        "optimizer": name,
        "tree": tree,
        "storage": storage,
        "step": step,
        "devices": share,
        "bytes_per_parameter": round(found.hbm / count, ROUND),
        "floor": round(floor / count, ROUND),
        "over_floor": round(found.hbm / floor, ROUND),
        "temporaries": round(memory.temp_size_in_bytes / count, ROUND),
        "kernels": found.kernels,
        "copies": found.copies,
        "scalars": found.scalars,
        "wire": round(on_the_wire(found.collectives, len(devices)) / count, ROUND),
        "collectives": {kind: list(each) for kind, each in sorted(found.collectives.items())},
        "flop": round(operations(tx, params) / count / share, ROUND),
        "float64": len(re.findall(r"\bf64\[", text)),
        "host_calls": len(re.findall(HOST_CALL, text)),
        "trace_seconds": round(traced - start, 2),
        "compile_seconds": round(done - traced, 2),
        **({"options": options} if options else {}),
    }


PIECES: dict[str, Callable[[Any], Any]] = {
    "product": lambda x: jnp.matmul(x, x, precision="highest"),
    "solve": lambda x: jax.scipy.linalg.solve_triangular(x, x),
    "qr": lambda x: jnp.linalg.qr(x)[0],
    "eigh": lambda x: jnp.linalg.eigh(x)[1],
}
"""What matrix methods are made of: compilers for TPUs make long programs of some of it."""


def alone(device: Any, size: int) -> dict[str, float]:
    """Seconds of all processors together to compile each piece, of one matrix (size, size)."""
    x = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=SingleDeviceSharding(device))
    found = {}
    for name, function in PIECES.items():
        start = time.process_time()
        jax.jit(function).lower(x).compile()
        found[name] = round(time.process_time() - start, 1)
        print(f"{name}: compiled in {found[name]} s", flush=True)
    return found


TITLES = (
    "tree", "storage", "step", "B/param", "floor", "x floor", "temporaries", "kernels", "scalars",
    "collectives", "FLOP", "compile",
)  # fmt: skip


def row(found: dict[str, Any]) -> list[str]:
    collectives = ", ".join(
        f"{count} {kind} {size / 1e6:.3g} MB"
        for kind, (count, size) in found["collectives"].items()
    )
    return [
        found["tree"],
        found["storage"],
        found["step"],
        f"{found['bytes_per_parameter']:.2f}",
        f"{found['floor']:.2f}",
        f"{found['over_floor']:.2f}",
        f"{found['temporaries']:.2f}",
        str(found["kernels"]),
        str(found["scalars"]),
        collectives or "none",
        f"{found['flop']:.0f}",
        f"{found['compile_seconds']:.1f} s",
    ]


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "optax"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def written(path: Path, figures: list[dict[str, Any]]) -> None:
    """Writes figures into a file, which keeps what it has of other cases.

    Raises a ValueError for a file of other versions, whose figures could not stand beside these.
    """
    names = ("target", "optimizer", "tree", "storage", "step", "devices")
    own, kept = versions(), {"versions": {}, "figures": []}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
    if other := {n: v for n, v in kept["versions"].items() if own.get(n, v) != v}:
        raise ValueError(f"{path} is of other versions, {other}: give another file, or delete it.")
    every = {
        (*(each[name] for name in names), *each.get("options", {}).items()): each
        for each in (*kept["figures"], *figures)
    }
    text = json.dumps({"versions": kept["versions"] | own, "figures": [*every.values()]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("targets", nargs="+", metavar="target", help="such as tpu:v5e:2x2, cuda:h100 and cpu")
    add("--storages", nargs="+", default=list(STORAGES), help="how Adam's state is kept")
    add("--trees", nargs="+", choices=SHAPES, default=list(SHAPES)[:-2], help="the parameters")
    add(
        "--steps",
        nargs="+",
        choices=[*STEPS, *OVER_DEVICES],
        default=["update"],
        help="what is compiled",
    )
    add(
        "--optimizers",
        nargs="+",
        default=["adam"],
        help="names; for the storage optax, of optax as well",
    )
    add("--split", action="store_true", help="split arrays over all devices of the target")
    add("--alone", type=int, metavar="SIZE", help="pieces of matrix methods in the place of steps")
    add("--options", nargs="+", default=[], metavar="NAME=VALUE", help="of the compiler")
    add("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    try:
        targets = {target: devices_of(target) for target in arguments.targets}
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if wrong := [each for each in arguments.options if "=" not in each]:
        parser.error(f"--options {wrong[0]}: give it a value, {wrong[0]}=…")
    options = dict(each.split("=", 1) for each in arguments.options)
    found: list[dict[str, Any]] = []
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    for target, devices in targets.items():
        if arguments.alone is not None:
            seconds = alone(devices[0], arguments.alone)
            found.append({"target": target, "size": arguments.alone, "seconds": seconds})
            continue
        for name in arguments.optimizers:
            print(f"\n{name} for {target} ({devices[0].device_kind}), compiled, not run\n")
            for line in (TITLES, ["---"] * len(TITLES)):
                print("| " + " | ".join(line) + " |")
            for tree, storage, step in itertools.product(
                arguments.trees, arguments.storages, arguments.steps
            ):
                one = figures(target, devices, tree, storage, step, name, arguments.split, options)
                found.append(one)
                print("| " + " | ".join(row(one)) + " |", flush=True)
                # Compilers and traces of the one have no part in the next one's time.
                jax.clear_caches()
    if arguments.json is not None:
        written(arguments.json, found)


if __name__ == "__main__":
    sys.exit(main())

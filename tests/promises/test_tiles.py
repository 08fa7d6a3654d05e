"""What the compilers for TPUs and GPUs make of tiles: each number is read once and written once.

Nothing is run. It needs `libtpu`, or the CUDA plugin of JAX, as `tests/benchmarks/ahead_of_time.py` does.
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import SingleDeviceSharding

import adaptive_jax as aj

BENCHMARKS = str(pathlib.Path(__file__).parents[1] / "benchmarks")
TARGETS = {"tpu:v5e:2x2": "libtpu", "cuda:h100": "jax_cuda12_plugin"}
MIXED = {"mu": "int8", "nu": "int16"}

CASES = {
    "float32": (aj.adam(1e-3), 1.01),
    "bfloat16": (aj.adam(1e-3, storage="bfloat16"), 1.01),
    "int8": (aj.adam(1e-3, storage="int8"), 1.05),
    "int8+int16": (aj.adam(1e-3, storage=MIXED), 1.05),
    "rmsprop": (aj.rmsprop(1e-3, centered=True, momentum=0.9, storage="int8"), 1.05),
    "sgd": (aj.sgd(1e-3, momentum=0.9, storage="int8"), 1.05),
    "lion": (aj.lion(1e-3, storage="int8"), 1.05),
}
"""Optimizers, and how much more than the floor they may move."""


@pytest.fixture(params=TARGETS)
def device(request):
    """A device of a target, which is not here."""
    pytest.importorskip(TARGETS[request.param])
    sys.path.insert(0, BENCHMARKS)
    ahead_of_time = pytest.importorskip("ahead_of_time")
    return ahead_of_time.devices_of(request.param)[0]


def compiled(tx, params, device, **options):
    """A training step of a loss whose gradients are the batch."""

    def loss(params, batch):
        products = jax.tree.map(lambda p, g: jnp.vdot(p, g).astype(jnp.float32), params, batch)
        return sum(jax.tree.leaves(products))

    def placed(tree):
        where = SingleDeviceSharding(device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def create(params):
        return aj.TrainState.create(params, tx, copy=False).replace(tx=optax.identity())

    state = placed(jax.eval_shape(create, params)).replace(tx=tx)
    return aj.train_step(loss, metrics=(), **options).lower(state, placed(params)).compile()


def nbytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def figures(tx, shape, device, dtype=jnp.float32, reads=1):
    """What a step moves over what it has to, and its temporaries per parameter.

    reads: how often gradients have to be read.
    """
    from hlo_traffic import traffic

    params = {"w": jax.ShapeDtypeStruct(shape, dtype)}
    step = compiled(tx, params, device, tiles=True)
    floor = (2 + reads) * nbytes(params) + 2 * nbytes(jax.eval_shape(tx.init, params))
    temporaries = step.memory_analysis().temp_size_in_bytes / params["w"].size
    return traffic(step.as_text()).hbm / floor, temporaries


@pytest.mark.filterwarnings(
    "ignore:tiles=True has no effect"
)  # XLA is at the floor without blocks.
@pytest.mark.parametrize("case", CASES)
def test_traffic_is_at_the_floor(case, device):
    tx, limit = CASES[case]
    over, temporaries = figures(tx, (4096, 4864), device)
    assert over <= limit
    assert temporaries <= 0.15


@pytest.mark.parametrize("shape", [(4096, 4096), (64, 512, 640), (4004, 5100)], ids=str)
def test_traffic_is_at_the_floor_for_other_shapes(shape, device):
    over, temporaries = figures(CASES["int8"][0], shape, device)
    assert over <= 1.05
    assert temporaries <= 0.15


@pytest.mark.filterwarnings("ignore:tiles=True has no effect")
@pytest.mark.parametrize("case", ["float32", "int8"])
def test_a_global_norm_reads_the_gradients_once_more(case, device):
    tx = aj.chain(aj.clip_by_global_norm(1.0), CASES[case][0])
    over, temporaries = figures(tx, (4096, 4864), device, reads=2)
    assert 0.999 <= over <= 1.01
    assert temporaries <= 0.15


@pytest.mark.parametrize("correction", [None, "int8", "parameter"])
def test_parameters_of_16_bits_are_rounded_in_the_kernel(correction, device):
    tx = CASES["int8"][0]
    tx = aj.compensate(tx, correction) if correction else tx
    over, temporaries = figures(tx, (4096, 4864), device, jnp.bfloat16)
    assert over <= 1.05
    assert temporaries <= 0.15

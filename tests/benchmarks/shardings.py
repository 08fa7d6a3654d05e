"""What a step on a mesh costs beside what the devices do: looking up where its arrays lie.

    python tests/benchmarks/shardings.py                 # 341 parameters on 8 devices

first   `train_step` finds out where the arrays of a state lie that no step has returned
later   the same for the state that a step returned, in each further step
checks  in each step, whether an array is in the state or in the batch twice, which XLA would end on

Microseconds, the least of some runs.
"""

import argparse
import os
import timeit

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax.training.donation import check_read


def loss(params, batch):
    return sum(jnp.sum(x) for x in params) * jnp.mean(batch)


def least(function, times):
    return min(timeit.repeat(function, number=1, repeat=times)) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=int, default=341)
    parser.add_argument("--repeat", type=int, default=200)
    given = parser.parse_args()
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put([jnp.ones((8, 8))] * given.arrays, everywhere)
    batch = jax.device_put(jnp.ones(8), everywhere)
    step = aj.train_step(loss)
    fresh = aj.TrainState.create(params, aj.adam(1e-3), shard="data")
    step._places_of(fresh)
    first = least(lambda: step._places_of(fresh), given.repeat)
    state, _ = step(fresh, batch)
    later = least(lambda: step._places_of(state), given.repeat)
    checks = least(lambda: check_read(state, batch), given.repeat)
    print(f"first {first:8.1f} µs\nlater {later:8.1f} µs\nchecks {checks:7.1f} µs")


if __name__ == "__main__":
    main()

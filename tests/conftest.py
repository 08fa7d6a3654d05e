"""Strict settings for every test, several devices to share arrays between, and room for programs."""

import gc
import os
import pathlib

import jax
import jaxlib
import pytest

if not hasattr(jax, "enable_x64"):  # Before jax 0.8.
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

DEVICES = "--xla_force_host_platform_device_count=8"
QUICKLY_COMPILED = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """Compiles quickly, unless `XLA_FLAGS` is set.

    Most of a test's time is XLA's, which compiles each program for a run of some steps. Here it uses its
    older emitters, and optimizes little: half the time. `XLA_FLAGS` as in `DEVICES` compiles as it does for
    users, and so does `.ci/run` for what depends on it.
    """
    if "XLA_FLAGS" not in os.environ:  # It is read when a device is first asked for.
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # For the workers of xdist.
        os.environ["XLA_FLAGS"] = f"{DEVICES} {QUICKLY_COMPILED}" if is_known_to_xla() else DEVICES
    if getattr(config.option, "dist", None) == "load":
        # Half of the tests for each of two workers, so that what needs the same programs is together.
        config.option.dist = "worksteal"


def is_known_to_xla():
    """Whether jaxlib has the flag: one that it does not know ends the process."""
    return (0, 8) <= jaxlib.version.__version_info__[:2] < (0, 11)


MEMORY_MAP = pathlib.Path("/proc/self/maps")
MOST_MAPPINGS = 20_000


@pytest.fixture(autouse=True)
def strict_jax():
    """No silent promotion of dtypes or of ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def room_for_programs():
    """Compiled programs are forgotten before they are too many.

    Each holds several mappings of memory, of which Linux gives a process 65,530; without one more,
    LLVM crashes. `check_rule` of Adam compiles programs for 200.
    """
    yield
    if MEMORY_MAP.exists() and MEMORY_MAP.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(params=list(jax.sharding.AxisType)[:2], ids=lambda kind: kind.name)
def make_mesh(request):
    """A mesh of so many devices along one axis, of each kind: Auto, and Explicit as in `jax.make_mesh`."""

    def make(devices, name="x"):
        return jax.make_mesh(
            (devices,), (name,), axis_types=(request.param,), devices=jax.devices()[:devices]
        )

    return make


@pytest.fixture
def compiled():
    """The names of what XLA compiles during a test, in order."""
    names = []

    def listen(event, duration, fun_name="", **rest):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    if hasattr(jax.monitoring, "unregister_event_duration_listener"):
        jax.monitoring.unregister_event_duration_listener(listen)
    else:  # Before jax 0.8.
        jax.monitoring.clear_event_listeners()

"""No optimizer that optax has moves or sets aside more memory than optax's, as XLA compiles a step."""

import jax
import jax.numpy as jnp
import optax
import pytest
from benchmarks.against_optax import optimizer_factory, shared_optimizers
from benchmarks.hlo_traffic import traffic

import adaptive_jax as aj

WITH_A_VALUE = ["polyak_sgd", "momo", "momo_adam"]
MOST_TOLD = [
    "signum", "optimistic_adam_v2", "sm3", "dadapt_adamw", "prodigy", "polyak_sgd", "momo_adam",
]  # fmt: skip
"""In the default run: those whose arithmetic decides it."""


def figures(library, name):
    """The bytes that a step moves, and its temporaries."""
    tx = optax.with_extra_args_support(optimizer_factory(library, name)())

    def step(params, state, gradients, value):
        updates, state = tx.update(gradients, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = {
        "kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32),
        "bias": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    value = jax.ShapeDtypeStruct((), jnp.float32)
    state = jax.eval_shape(tx.init, params)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, value)
    compiled = lowered.compile()
    return traffic(compiled.as_text()).hbm, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in MOST_TOLD else [pytest.mark.slow])
        for name in [*shared_optimizers(), *WITH_A_VALUE]
    ],
)
@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
def test_a_step_moves_and_sets_aside_no_more(name):
    if jax.default_backend() != "cpu":
        pytest.skip("How XLA fuses is told of the CPU.")
    ours, theirs = figures(aj, name), figures(optax, name)
    vectors = 16 * 1024  # The bias, and single numbers.
    assert ours[0] <= theirs[0] + vectors
    assert ours[1] <= theirs[1] + vectors


@pytest.mark.parametrize("name", ["momo", "polyak_sgd", "dog", "prodigy"])
def test_what_is_compiled_grows_with_the_number_of_arrays_and_not_with_its_square(name):
    """The step size, of sums over all arrays, is not computed again for each of them."""
    tx = getattr(aj, name)()
    value = jax.ShapeDtypeStruct((), jnp.float32)

    def size(arrays):
        tree = [jax.ShapeDtypeStruct((3,), jnp.float32)] * arrays
        state = jax.eval_shape(tx.init, tree)
        update = jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v))
        return len(update.lower(tree, state, tree, value).compile().as_text())

    assert size(80) < 2.3 * size(40)

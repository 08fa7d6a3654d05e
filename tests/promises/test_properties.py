"""Properties of everything exported, for generated trees, dtypes and numbers.

`test_numbers` has one tree of arrays in every dtype and generates its numbers: each function is
compiled once, and then runs hundreds of times, for each kind of rule under scan and vmap too.
`test_trees` generates trees, and traces or runs them without compiling. All tests draw the same
examples in every run.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import (
    CASES,
    FIRST,
    ILL_CONDITIONED,
    PORTED,
    REPRESENTATIVES,
    WRAPPERS,
    rules_of,
    sees_matrices,
    takes_only_matrices,
)

from adaptive_jax import rules
from adaptive_jax._core.plan import sees_all
from adaptive_jax.maths import least_denominator
from adaptive_jax.transforms.extra_args import asked_for

STEPS = 3
ELEMENTS = 4
MATRICES = (2, 2, 3)
EVERYTHING = [*CASES, *PORTED, *WRAPPERS]
DEFAULT = [*REPRESENTATIVES, *WRAPPERS]

# In the default run and in the slow one, of all optimizers together: more of these take no longer.
EXAMPLES = {"numbers": (700, 6_000), "trees": (200, 700)}
EXAMPLES_WITH_64_BITS = {"numbers": 2_000, "trees": 300}


def parametrized(kind: str) -> Callable[[Any], Any]:
    """In the default run rules of each kind, with few examples; every rule in the slow one."""
    default = math.ceil(EXAMPLES[kind][0] / len(DEFAULT))
    in_default_run = [pytest.param(case, min(default, few(case)), id=case) for case in DEFAULT]
    cases = in_default_run + everything(kind, EXAMPLES[kind][1], {*FIRST, *PORTED, *WRAPPERS})
    return pytest.mark.parametrize(("case", "examples"), cases)


def with_64_bits(kind: str) -> Callable[[Any], Any]:
    """Rules of each kind in the slow run."""
    cases = everything(kind, EXAMPLES_WITH_64_BITS[kind], {*DEFAULT})
    return pytest.mark.parametrize(("case", "examples"), cases)


def everything(kind: str, examples: int, in_slow_run: set[str]) -> list[Any]:
    """Everything exported, in every variant, seldom where not in the slow run.

    Numbers of all sizes are not for a learning rate that grows as the square of a gradient.
    """
    each = math.ceil(examples / len(EVERYTHING))
    return [
        pytest.param(
            *(case, min(each, few(case))),
            id=f"{case}-more",
            marks=pytest.mark.slow if case in in_slow_run else pytest.mark.seldom,
        )
        for case in EVERYTHING
        if not (kind == "numbers" and "multiplicative=False" in case)
    ]


def few(case: str) -> int:
    """How many examples there may be: few where one takes seconds of linear algebra."""
    name = case.partition("(")[0].removeprefix("scale_by_")
    return 4 if name in ("psgd_kron", "shampoo", "soap") else 1_000


def check_examples(
    examples: int, strategy: st.SearchStrategy, check: Callable[[Any], None]
) -> None:
    """Runs check with so many examples, the same ones every time."""
    configured = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    configured(hypothesis.given(strategy)(lambda example: check(example)))()


def make(case: str) -> Any:
    if case in WRAPPERS:
        return WRAPPERS[case][0]
    factory, settings = (CASES | PORTED)[case]
    return factory(**settings)


# Numbers


GROWING = (
    *(rules.Trace, rules.Mechanic, rules.ScheduleFree, rules.Ema),
    *(rules.Centralize, rules.Cautious, rules.ScaleByBlockRms, rules.Proximal),
)


def grows(case: str) -> bool:
    """What no float32 can hold near its largest number: a velocity of gradients, ‖g‖, means, a gradient
    times the size of the parameters or the share of it that is taken."""
    is_growing = any(isinstance(rule, GROWING) for rule in rules_of(make(case)))
    return is_growing or case.startswith(("monitor", "diagnose", "average"))


KL_EACH_STEP = "shampoo(learning_rate=0.1,kl=True,graft=sgd,refresh_every=1"


def is_ill_conditioned(case: str) -> bool:
    """Where rounding may change the result by any amount, so that no two ways of computing agree.

    What `compensate` keeps is a rounding error. `diagnose` counts what rounding changes, and adds up
    products of both signs. KL-Shampoo divides by the factors of the first gradient, which have no rank.
    """
    is_so = any(type(rule).__name__ in ILL_CONDITIONED for rule in rules_of(make(case)))
    return is_so or case in ("compensate", "diagnose") or case.startswith(KL_EACH_STEP)


def takes_complex(case: str) -> bool:
    return all(rule.takes_complex for rule in rules_of(make(case)))


def numbers(dtype: Any, largest: float, shape: tuple[int, ...]) -> st.SearchStrategy:
    """Arrays of finite numbers: zeros, denormals, the largest ones, mixed and repeated."""
    info = jnp.finfo(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = numbers(info.dtype, largest / 2, (*shape, 2))  # |z| is to be finite too.
        return parts.map(lambda x: (x[..., 0] + 1j * x[..., 1]).astype(dtype))
    largest = min(largest, float(info.max))
    special = [0.0, 1.0, float(info.smallest_subnormal), float(info.tiny), 1e-4, largest]
    wide = np.float64 if info.bits == 64 else np.float32
    element = st.sampled_from([*special, *(-x for x in special)]) | st.floats(
        -largest, largest, width=info.bits if info.bits > 16 else 32
    )
    generated = hnp.arrays(wide, shape, elements=element, fill=element)
    return generated.map(lambda x: np.clip(x, -largest, largest).astype(dtype))


def matrices_of(dtypes: tuple[Any, ...], share: float) -> st.SearchStrategy:
    """Gradients of all steps, two matrices in each array."""
    arrays = {
        np.dtype(x).name: numbers(x, share * float(jnp.finfo(x).max), (STEPS, *MATRICES))
        for x in dtypes
    }
    return st.fixed_dictionaries(arrays)


def gradient_trees(dtypes: tuple[Any, ...], share: float) -> st.SearchStrategy:
    """Gradients of all steps, and at the end of each array their absolute values.

    What an optimizer does to |g| tells how large the terms of an update of g were: the unit in which
    rounding errors are to be measured.
    """
    return st.fixed_dictionaries(
        {
            np.dtype(dtype).name: numbers(
                dtype, share * float(jnp.finfo(dtype).max), (STEPS, ELEMENTS)
            ).map(lambda x: np.concatenate([x, np.abs(x).astype(x.dtype)], axis=1))
            for dtype in dtypes
        }
    )


def assert_finite(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert np.isfinite(np.asarray(leaf).astype(np.complex128)).all(), (path, leaf)


def assert_agree(got: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal but for rounding, measured in the size of what was added up: of matrices, in their own."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        info = jnp.finfo(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else None
        if info is None:
            assert np.array_equal(x, y), path
            continue
        x, y = (np.asarray(each).astype(np.complex128) for each in (x, y))
        size = np.maximum(np.abs(x), np.abs(y))
        if size.shape[-1:] == (2 * ELEMENTS,):
            size[..., :ELEMENTS] = np.maximum(size[..., :ELEMENTS], size[..., ELEMENTS:])
        if size.shape[-3:] == MATRICES:
            size = np.max(size, axis=(-2, -1), keepdims=True)
        # What is not normal may be taken for 0, or not, and is then divided by ε or what stands for it.
        computed = jnp.finfo(np.float64 if info.bits == 64 else np.float32)
        least = 16 * float(info.tiny) + float(computed.tiny) / least_denominator(computed.dtype)
        allowed = max(4 * float(info.eps), tolerance) * size + least
        assert (np.abs(x - y) <= allowed).all(), (path, x, y)


def signature(tree: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x), jax.typeof(x).weak_type), tree)


def restarted(state: Any) -> Any:
    """A state that was saved and read back."""
    return jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state))))


def check_numbers(case: str, examples: int, dtypes: tuple[Any, ...]) -> None:
    tx = make(case)
    # What is smallest in a matrix is rounded as what is largest, and then as large.
    of_matrices = sees_matrices(tx)
    shape, tolerance = (MATRICES, 1e-3) if of_matrices else ((2 * ELEMENTS,), 2e-5)
    params = {
        np.dtype(dtype).name: jnp.linspace(-2.0, 2.0, math.prod(shape)).reshape(shape).astype(dtype)
        for dtype in dtypes
    }

    def run(gradients: Any) -> Any:
        def body(state, gradient):
            updates, state = tx.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(body, tx.init(params), gradients)

    start = tx.init(params)
    step = jax.jit(lambda *args: tx.update(*args))
    of_the_lift = case not in CASES or case in REPRESENTATIVES
    scan, vmapped = jax.jit(run), jax.jit(jax.vmap(run, in_axes=1, out_axes=(0, 0)))

    def check(gradients: Any) -> None:
        state, all_updates = start, []
        for i in range(STEPS):
            gradient = jax.tree.map(lambda x: x[i], gradients)  # noqa: B023
            updates, state = step(gradient, state, params)
            if case != "compensate":
                assert signature(updates) == signature(gradient)
            all_updates.append(updates)
        assert signature(state) == signature(start)
        assert_finite((state, all_updates))

        state = start
        for i in range(STEPS):
            gradient = jax.tree.map(lambda x: x[i], gradients)  # noqa: B023
            updates, state = step(gradient, restarted(state), params)
            same = jax.tree.map(np.array_equal, updates, all_updates[i])
            assert all(jax.tree.leaves(same)), "a restart changes the run"
        assert step._cache_size() == 1, "compiled twice"
        if is_ill_conditioned(case):
            return

        with jax.disable_jit():
            first = tx.update(jax.tree.map(lambda x: jnp.asarray(x[0]), gradients), start, params)
        assert_agree(first[0], all_updates[0], tolerance)
        if not of_the_lift:
            return
        loop = state, jax.tree.map(lambda *x: np.stack(x), *all_updates)
        assert_agree(scan(gradients), loop, tolerance)
        pair = jax.tree.map(lambda x: np.stack([x, x[::-1]], axis=1), gradients)
        both = vmapped(pair)
        assert_agree(jax.tree.map(lambda x: x[0], both), loop, tolerance)

    share = 1 / 64 if grows(case) else 1.0
    generated = (matrices_of if of_matrices else gradient_trees)(dtypes, share)
    check_examples(examples, generated, check)


@parametrized("numbers")
def test_numbers(case, examples):
    complex_too = (jnp.complex64,) if takes_complex(case) else ()
    check_numbers(case, examples, (jnp.float16, jnp.bfloat16, jnp.float32, *complex_too))


@with_64_bits("numbers")
def test_numbers_of_64_bits(case, examples):
    with jax.enable_x64(True):
        check_numbers(case, examples, (jnp.float64, jnp.float32))


# Trees


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: Any
    recurrent: Any


@dataclass(frozen=True)
class Leaf:
    """An array of the tree to be, whether it gets a gradient, and which numbers."""

    shape: tuple[int, ...]
    dtype: Any
    has_gradient: bool
    seed: int

    def array(self, what: int) -> jax.Array:
        values = np.random.default_rng([self.seed, what]).normal(size=(2, *self.shape))
        if jnp.issubdtype(self.dtype, jnp.complexfloating):
            return jnp.asarray(values[0] + 1j * values[1], self.dtype)
        return jnp.asarray(values[0], self.dtype)


def trees(dtypes: list[Any], shapes: list[tuple[int, ...]]) -> st.SearchStrategy:
    leaves = st.builds(
        Leaf,
        shape=st.sampled_from(shapes),
        dtype=st.sampled_from(dtypes),
        has_gradient=st.integers(0, 9).map(bool),
        seed=st.integers(0, 99),
    )

    def containers(children: st.SearchStrategy) -> st.SearchStrategy:
        return (
            st.lists(children, max_size=3)
            | st.lists(children, max_size=3).map(tuple)
            | st.dictionaries(st.text("abc/.'[", max_size=3), children, max_size=3)
            | st.builds(Pair, children, children)
            | st.builds(Layer, children, children)
        )

    return st.recursive(leaves | st.none(), containers, max_leaves=6)


def check_trees(case: str, examples: int, dtypes: list[Any]) -> None:
    tx = make(case)
    whole_tree = case.startswith(("monitor", "skip", "multi")) or any(
        sees_all(rule) for rule in rules_of(tx)
    )
    draws = "psgd_kron" in case  # Other random numbers for each place in a tree.

    takes_trees = "array" in asked_for(tx).values() or any(
        rule.needs_gradient for rule in rules_of(tx)
    )

    def check(tree: Any) -> None:
        params = jax.tree.map(lambda leaf: leaf.array(0), tree)
        gradients = jax.tree.map(lambda leaf: leaf.array(1) if leaf.has_gradient else None, tree)
        if gradients is None and takes_trees:
            return  # An extra argument that is None was left out.
        start = tx.init(params)
        traced = jax.eval_shape(tx.update, gradients, start, params)
        with jax.disable_jit():
            updates, state = tx.update(gradients, start, params)
            _, later = tx.update(gradients, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(gradients)
        assert signature(state) == signature(later) == signature(start)
        assert_finite((updates, later))
        for x, y in zip(jax.tree.leaves(traced), jax.tree.leaves((updates, state)), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if case != "compensate":
            assert signature(updates) == signature(gradients)
        if (
            whole_tree or draws or jax.config.jax_enable_x64
        ):  # There, one float64 array widens all scalars.
            return
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.has_gradient]
        for leaf, update in list(zip(leaves, jax.tree.leaves(updates), strict=True))[:1]:
            param = leaf.array(0)
            with jax.disable_jit():
                alone, _ = tx.update(leaf.array(1), tx.init(param), param)
            assert np.array_equal(alone, update), "an array depends on what is beside it"

    of_others = [(1, 1), (2, 1, 3)] if takes_only_matrices(tx) else [(), (3,)]
    check_examples(examples, trees(dtypes, [*of_others, (2, 2), (0, 2)]), check)


@parametrized("trees")
def test_trees(case, examples):
    dtypes = [jnp.float16, jnp.bfloat16, jnp.float32]
    complex_too = [jnp.complex64] if takes_complex(case) else []
    check_trees(case, examples, [*dtypes, *complex_too])


@with_64_bits("trees")
def test_trees_of_64_bits(case, examples):
    with jax.enable_x64(True):
        check_trees(case, examples, [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])

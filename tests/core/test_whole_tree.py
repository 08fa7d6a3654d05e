"""Rules that measure arrays before they update them: numbers, extra arguments, the first gradient."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.whole_tree_rules import AdaGradNorm, AdaHessian, Cautious, Prodigy, StochasticPolyak, Sums

import adaptive_jax as aj

PARAMS = {"w": jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]]), "b": jnp.array([2.0, -3.0])}
WEIGHTS = {"w": np.array([[1.0, 2, 3], [4, 5, 6]]), "b": np.array([0.5, 2.0])}


def gradient(params):
    """Of ½ΣA∘θ²."""
    return {name: weight * np.asarray(params[name]) for name, weight in WEIGHTS.items()}


def value(params):
    return sum(0.5 * np.sum(w * np.asarray(params[name]) ** 2) for name, w in WEIGHTS.items())


def run(tx, steps, extra=lambda params: {}):
    """The parameters after each step, of jitted updates, and the last state."""
    params, state, found = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for _ in range(steps):
        gradients = jax.tree.map(jnp.float32, gradient(params))
        updates, state = update(gradients, state, params, **extra(params))
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def in_float64(steps, direction):
    """The same, of a function from gradients and parameters to updates, in NumPy."""
    params, found = {k: np.float64(x) for k, x in PARAMS.items()}, []
    for _ in range(steps):
        updates = direction(gradient(params), params)
        params = {k: x + updates[k] for k, x in params.items()}
        found.append(params)
    return found


def assert_close(found, expected, rtol=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=1e-6)


def norm(tree):
    return np.sqrt(sum(np.sum(x**2) for x in tree.values()))


def test_a_step_from_the_value_and_the_norm():
    def direction(g, params):
        rate = min(value(params) / (0.5 * norm(g) ** 2), 1.0)
        return {k: -rate * x for k, x in g.items()}

    found, _ = run(aj.transform(StochasticPolyak()), 4, lambda p: {"value": np.float32(value(p))})
    assert_close(found, in_float64(4, direction))


@pytest.mark.parametrize("layerwise", [False, True])
def test_scalars_of_all_arrays_and_of_each(layerwise):
    totals = dict.fromkeys(PARAMS, 0.25)

    def direction(g, params):
        for name in totals:
            totals[name] += norm({name: g[name]}) ** 2 if layerwise else norm(g) ** 2
        return {k: -0.1 * x / np.sqrt(totals[k]) for k, x in g.items()}

    tx = aj.transform(AdaGradNorm(0.5, layerwise), aj.LearningRate(0.1))
    found, state = run(tx, 4)
    assert_close(found, in_float64(4, direction))
    total = state[0].total
    if layerwise:
        assert jax.tree.structure(total) == jax.tree.structure(PARAMS)
    else:
        total = {"w": total, "b": total}
    for name, expected in totals.items():
        np.testing.assert_allclose(total[name], expected, rtol=1e-5)


def test_an_array_argument():
    moments = {k: [0.0, 0.0] for k in PARAMS}
    step = 0

    def direction(g, params):
        nonlocal step
        step += 1
        updates = {}
        for k, x in g.items():
            mu, nu = moments[k]
            mu, nu = 0.9 * mu + 0.1 * x, 0.999 * nu + 0.001 * WEIGHTS[k] ** 2
            moments[k] = [mu, nu]
            root = np.sqrt(nu / (1 - 0.999**step)) + 1e-8
            updates[k] = -0.1 * mu / (1 - 0.9**step) / root
        return updates

    tx = aj.transform(AdaHessian(), aj.LearningRate(0.1))
    diagonal = jax.tree.map(jnp.float32, WEIGHTS)
    found, _ = run(tx, 4, lambda p: {"hessian_diagonal": diagonal})
    assert_close(found, in_float64(4, direction))


def test_a_vector_of_scalars():
    betas, sums = np.array([0.5, 0.9, 0.99]), np.full(3, 0.25)

    def direction(g, params):
        nonlocal sums
        sums = betas * sums + norm(g)
        return {k: -x / sums.sum() for k, x in g.items()}

    found, state = run(aj.transform(Sums(), aj.LearningRate(1.0)), 3)
    assert_close(found, in_float64(3, direction))
    assert state[0].sums.shape == (3,)
    many = jax.vmap(lambda start: aj.transform(Sums(start=start)).init(PARAMS))(jnp.arange(4.0))
    assert many.sums.shape == (4, 3)


def test_the_gradient_as_it_came_to_the_chain():
    momentum = {}

    def direction(g, params):
        m = {k: 0.9 * momentum.get(k, 0.0) + x for k, x in g.items()}
        momentum.update(m)
        agree = {k: (m[k] * g[k] > 0).astype(float) for k in g}
        factor = sum(x.size for x in g.values()) / max(sum(x.sum() for x in agree.values()), 1)
        return {k: -0.4 * factor * m[k] * agree[k] for k in m}

    row = aj.transform(aj.rules.Trace(0.9), Cautious(), aj.LearningRate(0.4))
    chain = aj.chain(
        aj.transform(aj.rules.Trace(0.9)), aj.skip_nonfinite(aj.transform(Cautious())), aj.sgd(0.4)
    )
    of_optax = optax.chain(aj.transform(aj.rules.Trace(0.9)), aj.transform(Cautious()), aj.sgd(0.4))
    expected = in_float64(5, direction)
    assert_close(run(row, 5)[0], expected)
    assert_close(run(chain, 5)[0], expected)
    as_given = lambda params: {"grad": jax.tree.map(jnp.float32, gradient(params))}  # noqa: E731
    assert_close(run(of_optax, 5, as_given)[0], expected)


def test_where_the_first_gradient_is_not_known_it_is_refused():
    cautious = aj.transform(Cautious())
    inside = optax.masked(cautious, jax.tree.map(lambda x: True, PARAMS))
    for tx in (
        optax.chain(aj.scale_by_adam(), cautious),
        optax.chain(aj.chain(cautious)),
        aj.chain(aj.scale_by_adam(), inside),
    ):
        with pytest.raises(ValueError, match=r"Cautious\(\) needs the gradient .* grad=gradients"):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    # Alone, what comes to it is the gradient.
    for tx in (cautious, inside, aj.multi_steps(cautious, 2)):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_other_libraries_see_no_argument_of_ours():
    seen = []

    def update(updates, state, params=None, **extra_args):
        seen.append(extra_args)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = aj.chain(spy, aj.transform(Cautious()))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)
    assert seen == [{"value": 1.0}]


def test_none_and_empty_arrays_are_not_measured():
    params = {"a": jnp.ones(2), "empty": jnp.ones((0, 3)), "frozen": jnp.ones(4), "none": None}
    grads = {**params, "frozen": None}

    @dataclass(frozen=True)
    class Largest(aj.Rule):
        layerwise: bool = False
        scalars = {"largest": 0.0}

        def measure(self, grad, slots, param, ctx):
            return {"largest": jnp.max(jnp.abs(grad))}

        def advance(self, scalars, measured, ctx):
            assert measured["largest"].shape == (1,)
            return {"largest": jnp.maximum(scalars["largest"], measured["largest"].max())}

        def update(self, grad, slots, param, ctx):
            return grad / ctx.scalars["largest"], {}

    for layerwise in (False, True):
        tx = aj.transform(Largest(layerwise), aj.LearningRate(1.0))
        updates, state = tx.update(grads, tx.init(params), params)
        assert updates["empty"].shape == (0, 3)
        assert updates["frozen"] is None
        np.testing.assert_array_equal(updates["a"], -1.0)
        if layerwise:
            assert state[0].largest == {"a": 1.0, "empty": 0.0, "frozen": 0.0, "none": None}
    tx = aj.transform(Largest())
    nothing = {"empty": jnp.ones((0, 3)), "none": None}
    updates, state = tx.update(nothing, tx.init(nothing))
    assert state.largest == 0


def test_scalars_are_of_float32_at_least():
    tx = aj.transform(AdaGradNorm(), AdaGradNorm(0.1, True))
    for dtype in (jnp.bfloat16, jnp.float16):
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), PARAMS)
        updates, state = tx.update(params, tx.init(params))
        assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


def test_a_sweep_and_a_scan():
    def total(b):
        tx = aj.transform(AdaGradNorm(b, True), AdaGradNorm(b))
        step = lambda state, _: (tx.update(PARAMS, state)[1], None)  # noqa: E731
        return jax.lax.scan(step, tx.init(PARAMS), length=2)[0][1].total

    b = jnp.array([0.1, 2.0])
    np.testing.assert_allclose(jax.vmap(total)(b), [total(each) for each in b], rtol=1e-6)


def test_the_rate_of_the_rules_before():
    seen = []

    @dataclass(frozen=True)
    class Told(aj.Rule):
        def advance(self, scalars, measured, ctx):
            return {"rate": ctx.learning_rate}

        def update(self, grad, slots, param, ctx):
            seen.append(ctx.learning_rate)
            return grad * ctx.scalars["rate"], {}

    def schedule(count):
        return 0.5 / (count.astype(jnp.float32) + 1)

    tx = aj.transform(aj.LearningRate(schedule), aj.LearningRate(0.5), Told())
    gradients = jnp.ones(2)
    state = tx.init(gradients)
    for step in (1, 2):
        updates, state = tx.update(gradients, state)
        rate = 0.25 / step
        np.testing.assert_allclose(updates, rate * rate, rtol=1e-6)
    updates, _ = aj.transform(Told()).update(gradients, optax.EmptyState())
    np.testing.assert_array_equal(updates, 1.0)


def test_a_second_learning_rate_is_refused():
    @dataclass(frozen=True)
    class Step(aj.Rule):
        owns_rate = True

        def update(self, grad, slots, param, ctx):
            return -ctx.learning_rate * grad, {}

    updates, _ = aj.transform(aj.LearningRate(0.5, flip_sign=False), Step()).update(
        jnp.ones(2), (optax.EmptyState(), optax.EmptyState())
    )
    np.testing.assert_allclose(updates, -0.25)
    with pytest.raises(
        ValueError, match=r"Step\(\) returns the step itself.* LearningRate\(learning_r"
    ):
        aj.transform(Step(), aj.LearningRate(0.5))
    for rules in ((Prodigy(), aj.LearningRate(0.5)), (aj.LearningRate(0.5), Prodigy())):
        with pytest.raises(ValueError, match=r"Prodigy\(.* would multiply by a second one"):
            aj.transform(*rules)


def test_a_second_learning_rate_in_a_chain_is_refused():
    """Through wrappers too; but two groups of arrays may have one each."""
    own, sgd = aj.transform(Prodigy()), aj.sgd(0.5)
    labels = {"w": "own", "b": "other"}
    grouped = aj.partition({"own": own, "other": aj.scale_by_adam()}, labels)
    rated = aj.partition({"own": aj.scale_by_adam(), "other": sgd}, labels)
    for row in (
        (own, sgd),
        (sgd, own),
        (aj.multi_steps(aj.chain(own), 2), sgd),
        (grouped, aj.skip_nonfinite(sgd)),
        (own, rated),
    ):
        with pytest.raises(ValueError, match=r"Prodigy\(.* would multiply by a second one"):
            aj.chain(*row)
    aj.chain(grouped, rated)
    aj.chain(aj.clip_by_global_norm(1.0), aj.scale_by_adam(), own)


def test_random_bits_of_a_rule():
    @dataclass(frozen=True)
    class Noise(aj.Rule):
        counts_steps = True

        def update(self, grad, slots, param, ctx):
            bits = aj.maths.random_bits(grad.shape, ctx.key)
            return jnp.where(bits >> 31, grad, -grad), {}

    tx = aj.transform(Noise())
    params = [jnp.ones(4096)] * 2
    state = tx.init(params)
    first, state = jax.jit(tx.update)(params, state)
    second, _ = jax.jit(tx.update)(params, state)
    again, _ = tx.update(params, tx.init(params))
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    draws = np.stack([*first, *second])
    assert np.all(np.abs(draws.mean(1)) < 0.06)
    assert np.all(np.abs(draws @ draws.T / 4096 - np.eye(4)) < 0.06)


# ------------------------------------------------------------------------------ what is said
@dataclass(frozen=True)
class Measuring(aj.Rule):
    scalars = {"d": 1.0, "r": 0.0}

    def measure(self, grad, slots, param, ctx):
        return {"sum": jnp.sum(grad)}

    def advance(self, scalars, measured, ctx):
        return scalars

    def update(self, grad, slots, param, ctx):
        return grad, {}


@dataclass(frozen=True)
class Forgetful(Measuring):
    def advance(self, scalars, measured, ctx):
        return {"d": scalars["d"]}


@dataclass(frozen=True)
class Growing(Measuring):
    def advance(self, scalars, measured, ctx):
        return {"d": measured["sum"], "r": scalars["r"]}


@dataclass(frozen=True)
class OfAnArray(Measuring):
    def measure(self, grad, slots, param, ctx):
        return jnp.sum(grad)


@dataclass(frozen=True)
class OfArrays(Measuring):
    def measure(self, grad, slots, param, ctx):
        return {"sum": jnp.sum(grad, 0)}


@dataclass(frozen=True)
class OfSome(Measuring):
    def measure(self, grad, slots, param, ctx):
        return {"sum": jnp.sum(grad)} if grad.ndim > 1 else {}


@dataclass(frozen=True)
class Storing(Measuring):
    def advance(self, scalars, measured, ctx):
        return {**scalars, "e": ctx.store("mu", measured["sum"])}


@dataclass(frozen=True)
class Undeclared(Measuring):
    def update(self, grad, slots, param, ctx):
        return ctx.gradient, {}


@dataclass(frozen=True)
class Unknown(Measuring):
    def update(self, grad, slots, param, ctx):
        return ctx.scalars["rate"] * grad, {}


@dataclass(frozen=True)
class Keyed(Measuring):
    def update(self, grad, slots, param, ctx):
        return grad + ctx.key, {}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Forgetful(), r"Forgetful.advance must return .* scalars, \['d', 'r'\], .* got \['d'\]"),
        (Growing(), r"Growing.advance returned for d float32\[2\], and it was float32\[\] before"),
        (OfAnArray(), r"OfAnArray.measure must return a dict .*; got float32\[\]"),
        (OfArrays(), r"OfArrays.measure returned for sum float32\[3\]: it must be one real number"),
        (OfSome(), r"OfSome.measure returned \[\] for one array and \['sum'\] for another"),
        (Keyed(), r"Keyed.update asks for ctx.key, .* counts_steps = True"),
        (Unknown(), r"Unknown.update asks for 'rate', .* beside them there are \['d', 'r'\]"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_rules_that_break_their_word(rule, message):
    tx = aj.transform(rule)
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Storing(), r"Storing.advance asks for ctx.store: it sees the numbers of all arrays"),
        (Undeclared(), r"Undeclared.update asks for ctx.gradient: .* needs_gradient = True"),
    ],
)
def test_what_a_context_has_not(rule, message):
    tx = aj.transform(rule)
    with pytest.raises(AttributeError, match=message):
        tx.update(PARAMS, tx.init(PARAMS))


def test_rules_of_version_0_1_are_told_what_to_write():
    @dataclass(frozen=True)
    class Statistic(aj.Rule):
        def statistic(self, grads):
            return aj.global_norm(grads)

        def update(self, grad, slots, param, ctx):
            return grad / ctx.statistic, {}

    @dataclass(frozen=True)
    class Counting(Measuring):
        def advance(self, scalars, step):
            return scalars

    @dataclass(frozen=True)
    class NoAdvance(Measuring):
        advance = None

    with pytest.raises(TypeError, match=r"Statistic defines `statistic.* def measure\(self, grad"):
        aj.transform(Statistic())
    with pytest.raises(
        TypeError, match=r"Counting.advance .* must take \(self, scalars, measured, c"
    ):
        aj.transform(Counting())
    with pytest.raises(TypeError, match=r"NoAdvance defines `measure`, and no `advance"):
        aj.transform(NoAdvance())


def test_extra_arguments_that_are_missing_or_of_another_kind():
    polyak, hessian = aj.transform(StochasticPolyak()), aj.transform(AdaHessian())
    state = hessian.init(PARAMS)
    with pytest.raises(ValueError, match=r"StochasticPolyak\(.*needs .* value, a number: call"):
        polyak.update(PARAMS, optax.EmptyState())
    with pytest.raises(
        ValueError, match=r"StochasticPolyak\(.*one real number, and got float32\[2"
    ):
        polyak.update(PARAMS, optax.EmptyState(), value=jnp.ones(2))
    with pytest.raises(ValueError, match=r"AdaHessian\(.*needs .* hessian_diagonal, a tree like"):
        aj.chain(hessian, aj.sgd(0.1)).update(PARAMS, (state, optax.EmptyState()))
    with pytest.raises(ValueError, match=r"only the gradients have .'b'"):
        hessian.update(PARAMS, state, hessian_diagonal={"w": PARAMS["w"]})
    with pytest.raises(ValueError, match=r"'b'.* is float32\[2\], but the extra .* is None there"):
        hessian.update(PARAMS, state, hessian_diagonal={"w": PARAMS["w"], "b": None})
    with pytest.raises(
        ValueError, match=r"'b'.* the extra argument hessian_diagonal has float32\[3"
    ):
        hessian.update(PARAMS, state, hessian_diagonal={"w": PARAMS["w"], "b": jnp.ones(3)})


def test_a_scalar_that_names_a_schedule_is_refused():
    @dataclass(frozen=True)
    class Named(Measuring):
        first: aj.Hyper = 1.0
        scalars = {"d": "first"}

    with pytest.raises(TypeError, match="first=<lambda> is a schedule in Named"):
        Named(lambda count: 1.0)
    with pytest.raises(TypeError, match=r"first of AdaGradNorm is .* made of a schedule, as b is"):
        AdaGradNorm(b=lambda count: 1.0)


@pytest.mark.parametrize(
    ("own_slots", "own_scalars", "message"),
    [
        ({}, {"count": 1.0}, "has a slot or scalar 'count': each is an entry of the state"),
        ({"_mu": aj.Slot()}, {}, "has a slot or scalar '_mu'"),
        ({}, {"d": None}, r"scalars\['d'\]=None must be a number, a tuple"),
        ({}, {"d": ()}, r"scalars\['d'\]=\(\) must be a number"),
        (
            {},
            {"d": "zero"},
            "'zero' is the first value of a slot or scalar of Wrong, which has no such",
        ),
        ({"mu": aj.Slot("zero")}, {}, "'zero' is the first value"),
        ({"mu": 0.0}, {}, r"Wrong.slots\['mu'\]=0.0 must be a slot"),
        (("mu",), {}, r"Wrong.slots is \('mu',\), and must be a dict, from names: slots = "),
        ({}, ["d"], r"Wrong.scalars is \['d'\], and must be a dict"),
    ],
)
def test_state_that_is_declared_wrongly_is_refused_by_name(own_slots, own_scalars, message):
    @dataclass(frozen=True)
    class Wrong(Measuring):
        slots = own_slots
        scalars = own_scalars

    with pytest.raises(TypeError, match=message):
        aj.transform(Wrong())


def test_a_state_may_be_donated_whatever_its_first_values_were_made_of():
    d0 = jnp.float32(1e-6)
    for tx in (
        aj.transform(Prodigy(d0=d0)),
        aj.transform(Layerwise(jax.tree.map(lambda _: d0, PARAMS))),
    ):
        state = tx.init(PARAMS)
        update = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p), donate_argnums=1)
        update(PARAMS, state, PARAMS)
        assert d0 == 1e-6


@dataclass(frozen=True)
class Layerwise(aj.Rule):
    first: aj.NonNegative
    layerwise = True
    scalars = {"number": "first"}

    def advance(self, scalars, measured, ctx):
        return {"number": scalars["number"] + 1}

    def update(self, grad, slots, param, ctx):
        return grad, {}

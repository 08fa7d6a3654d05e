"""Runs of optax that go on here, and back there, against optax itself."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adaptive_jax as aj
from adaptive_jax.interop.optax import export_state, import_state
from adaptive_jax.interop.optax.counterparts import COUNTERPARTS

RANDOM = np.random.default_rng(0)
PARAMS = {
    "w": jnp.array(RANDOM.normal(size=(4, 3)), jnp.float32),
    "b": jnp.array(RANDOM.normal(size=3), jnp.float32),
}
GRADIENTS = [
    jax.tree.map(lambda x: jnp.array(RANDOM.normal(size=x.shape), jnp.float32), PARAMS)
    for _ in range(8)
]
HALF = 5
LABELS = {"w": "a", "b": "c"}
SCHEDULE = optax.linear_schedule(0.1, 0.01, 20)
ONLY_W = {"w": True, "b": False}


@pytest.fixture(autouse=True)
def as_optax_computes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def after(tx, params, state, gradients, **extra):
    """The parameters and the state after some steps."""

    @jax.jit
    def step(gradient, params, state):
        updates, state = tx.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(gradient, params, state)
    return SimpleNamespace(params=params, state=state)


def assert_same(one, other):
    """Bit by bit, and in the same dtypes."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_close(one, other, tolerance=2e-5):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * float(1e-30 + jnp.abs(y).max()))


LOSS = {"value": jnp.float32(3.0)}

# Ours, and optax's that computes the same.
SAME = {
    "ademamix": lambda: (aj.ademamix(SCHEDULE), contrib.ademamix(SCHEDULE)),
    "adopt": lambda: (aj.adopt(0.1), contrib.adopt(0.1)),
    "muon": lambda: (
        aj.muon(0.1, nesterov=False, rest=aj.adamw(0.1, weight_decay=0.1)),
        contrib.muon(0.1, nesterov=False, eps=1e-8, adam_weight_decay=0.1),
    ),
    "prodigy": lambda: (aj.prodigy(bias_correction=True), contrib.prodigy()),
    "schedule_free_adamw": lambda: (
        aj.schedule_free_adamw(0.1, warmup_steps=3),
        contrib.schedule_free_adamw(0.1, warmup_steps=3),
    ),
    "partition": lambda: (
        aj.partition({"a": aj.cocob(), "c": aj.adopt(0.1, storage="bfloat16")}, LABELS),
        optax.partition({"a": contrib.cocob(1.0), "c": contrib.adopt(0.1)}, LABELS),
    ),
}
SAME_SLOWLY = {
    "adan": lambda: (aj.adan(0.1, b2=0.5), optax.adan(0.1, b2=0.5, eps_root=0.0)),
    "cocob": lambda: (aj.cocob(), contrib.cocob(1.0)),
    "dog": lambda: (aj.dog(), contrib.dog()),
    "dowg": lambda: (aj.dowg(), contrib.dowg()),
    "sm3": lambda: (aj.sm3(0.1), optax.sm3(0.1)),
    "optimistic_gradient_descent": lambda: (
        aj.optimistic_gradient_descent(0.1),
        optax.optimistic_gradient_descent(0.1),
    ),
    "adamw": lambda: (
        aj.adamw(0.1, weight_decay=0.1, mask=ONLY_W),
        optax.adamw(0.1, weight_decay=0.1, mask=ONLY_W),
    ),
    "sgd": lambda: (
        aj.sgd(SCHEDULE, momentum=0.9, storage="bfloat16"),
        optax.sgd(SCHEDULE, momentum=0.9),
    ),
    "lion": lambda: (aj.lion(0.1, storage="bfloat16"), optax.lion(0.1)),
    "lars": lambda: (aj.lars(0.1, 0.1, sum_of_norms=False), optax.lars(0.1, 0.1)),
    "novograd": lambda: (aj.novograd(0.1), optax.novograd(0.1)),
    "adabelief": lambda: (aj.adabelief(0.1), optax.adabelief(0.1)),
    "adafactor": lambda: (
        aj.adafactor(0.1, min_dim_size_to_factor=2),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
    ),
    "fromage": lambda: (aj.fromage(0.1), optax.fromage(0.1)),
    "simplified_ademamix": lambda: (
        aj.simplified_ademamix(0.1),
        contrib.simplified_ademamix(0.1),
    ),
    "dadapt_adamw": lambda: (aj.dadapt_adamw(bias_correction=True), contrib.dadapt_adamw()),
    "dog by a rate": lambda: (
        aj.dog(init_step=("learning_rate", 0.01)),
        contrib.dog(init_step=("learning_rate", 0.01)),
    ),
    "momo": lambda: (aj.momo(0.1), contrib.momo(0.1)),
    "momo_adam": lambda: (
        aj.momo_adam(0.1, adapt_lower_bound=True),
        contrib.momo_adam(0.1, adapt_lower_bound=True),
    ),
    "schedule_free_sgd": lambda: (aj.schedule_free_sgd(0.1), contrib.schedule_free_sgd(0.1)),
    "schedule_free": lambda: (
        aj.schedule_free(aj.adam(0.1, b1=0.0), 0.1),
        contrib.schedule_free(optax.adam(0.1, b1=0.0), 0.1),
    ),
    "chain": lambda: (
        aj.chain(aj.clip_by_global_norm(1.0), aj.adopt(0.1), optax.trace(0.9)),
        optax.chain(optax.clip_by_global_norm(1.0), contrib.adopt(0.1), optax.trace(0.9)),
    ),
    "masked": lambda: (
        aj.masked(aj.adopt(0.1), ONLY_W),
        optax.masked(contrib.adopt(0.1), ONLY_W),
    ),
    "multi_steps": lambda: (
        aj.multi_steps(aj.ademamix(0.1), 2),
        optax.MultiSteps(contrib.ademamix(0.1), 2).gradient_transformation(),
    ),
    "skip_nonfinite": lambda: (
        aj.skip_nonfinite(aj.ademamix(0.1)),
        optax.apply_if_finite(contrib.ademamix(0.1), 5),
    ),
}
NOT_BY_NAME = {"multi_steps", "skip_nonfinite", "partition", "muon"}
"""Of which export is told what the optimizer there is."""


@pytest.mark.parametrize(
    "name", [*SAME, *[pytest.param(name, marks=pytest.mark.slow) for name in SAME_SLOWLY]]
)
def test_a_run_goes_on_here_as_there(name):
    ours, theirs = (SAME | SAME_SLOWLY)[name]()
    extra = LOSS if name.startswith("momo") else {}
    half = after(theirs, PARAMS, theirs.init(PARAMS), GRADIENTS[:HALF], **extra)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = import_state(ours, half.params, half.state)
        back = export_state(ours, half.params, state, theirs)
    first = ours.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(first)
    for x, like in zip(jax.tree.leaves(state), jax.tree.leaves(first), strict=True):
        assert (x.shape, x.dtype) == (like.shape, like.dtype)
    if "storage" in repr(ours):  # bfloat16 rounds.
        assert_close(back, half.state, 0.01)
    else:
        assert_same(back, half.state)
    if name not in NOT_BY_NAME:
        assert_close(export_state(ours, half.params, state), half.state, 0.01)
    tolerance = 1e-2 if "storage" in repr(ours) else 2e-5
    here = after(ours, half.params, state, GRADIENTS[HALF:], **extra)
    there = after(theirs, half.params, half.state, GRADIENTS[HALF:], **extra)
    assert_close(here.params, there.params, tolerance)
    # What runs here, goes on there.
    assert_close(export_state(ours, here.params, here.state, theirs), there.state, tolerance)


def test_lookahead_takes_the_pair_of_optax():
    ours, theirs = aj.lookahead(aj.sgd(0.1, momentum=0.9), 3), optax.lookahead(
        optax.sgd(0.1, momentum=0.9), 3, 0.5
    )  # fmt: skip
    pair = optax.LookaheadParams.init_synced(PARAMS)
    half = after(theirs, pair, theirs.init(pair), GRADIENTS[:HALF])
    state = import_state(ours, half.params, half.state)
    assert_same(export_state(ours, half.params.fast, state), half.state)
    here = after(ours, half.params.fast, state, GRADIENTS[HALF:])
    there = after(theirs, half.params, half.state, GRADIENTS[HALF:])
    assert_close(here.params, there.params.fast)
    assert_close(aj.eval_params(ours, here.params, here.state), there.params.slow)
    with pytest.raises(ValueError, match=r"give as params .* optax\.LookaheadParams\(fast, slow\)"):
        import_state(ours, half.params.fast, half.state)


@pytest.mark.slow
def test_mechanic_goes_on_from_where_it_is():
    """optax tells Δ from the parameters, and lets r be negative: a run is close, and in the same place."""
    ours, theirs = (x.mechanize(y.adam(1.0), s_init=1e-4) for x, y in ((aj, aj), (contrib, optax)))
    half = after(theirs, PARAMS, theirs.init(PARAMS), GRADIENTS[:HALF])
    state = import_state(ours, half.params, half.state)
    told = jax.tree.map(
        lambda start, delta: start + state[1].s.sum() * delta, state[1].start, state[1].delta
    )
    assert_close(told, half.params, 1e-3)
    assert_same(export_state(ours, half.params, state), half.state)
    here = after(ours, half.params, state, GRADIENTS[HALF:])
    there = after(theirs, half.params, half.state, GRADIENTS[HALF:])
    assert_close(here.params, there.params, 1e-3)
    five = contrib.mechanize(optax.adam(1.0), num_betas=5).init(PARAMS)
    with pytest.raises(ValueError, match=r"MechanicState\.s has the shape \(5,\).*of \(6,\)"):
        import_state(ours, PARAMS, five)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yogi", "rprop"])
def test_what_optax_gathered_otherwise_comes_and_goes(name):
    ours, theirs = getattr(aj, name)(0.1), getattr(optax, name)(0.1)
    half = after(theirs, PARAMS, theirs.init(PARAMS), GRADIENTS[:HALF])
    state = import_state(ours, half.params, half.state)
    assert_same(export_state(ours, half.params, state), half.state)


def test_sophia_keeps_all_but_the_key():
    def objective(params):
        return sum(jnp.sum(x**4) for x in jax.tree.leaves(params))

    ours, theirs = aj.sophia(0.1), contrib.sophia(0.1)
    state = theirs.init(PARAMS)
    _, state = theirs.update(GRADIENTS[0], state, PARAMS, obj_fn=objective)
    back = export_state(ours, PARAMS, import_state(ours, PARAMS, state))
    first = theirs.init(PARAMS)[0].hessian_fn_state
    assert_same(back, (state[0]._replace(hessian_fn_state=first), *state[1:]))


def test_every_counterpart_is_one_of_optax():
    """By its name and its entries, in the version that is installed."""
    found = {}
    for module in (optax, contrib):
        for kind in vars(module).values():
            if isinstance(kind, type) and hasattr(kind, "_fields"):
                found[kind.__name__] = kind._fields
    made = [
        x.init(PARAMS)
        for x in (optax.adan(0.1), optax.optimistic_gradient_descent(0.1), optax.sm3(0.1))
    ]
    found |= {type(x[0]).__name__: x[0]._fields for x in made}
    for rule, known in COUNTERPARTS.items():
        assert known.state in found, rule
        assert set(known.entries.values()) <= set(found[known.state]), rule
        rules = {
            *rule.slots,
            "count",
            *(() if isinstance(rule.scalars, property) else rule.scalars),
        }
        assert set(known.entries) - set("srmv") <= rules, rule


def refusal(ours, theirs, params=PARAMS, **options):
    with pytest.raises((TypeError, ValueError)) as caught:
        import_state(ours, params, theirs, **options)
    return str(caught.value)


def test_what_has_no_counterpart_is_refused_by_name():
    adam = optax.adam(0.1).init(PARAMS)
    assert "optax has nothing like Soap of soap(" in refusal(aj.soap(0.1), adam)
    assert "optax has nothing like DoG of l_dog(" in refusal(aj.l_dog(), contrib.dog().init(PARAMS))
    assert "optax has nothing like diagnose(" in refusal(aj.diagnose(aj.adam(0.1)), adam)
    text = refusal(aj.adam(0.1), contrib.madgrad(0.1).init(PARAMS))
    assert "goes on from optax's ScaleByAdamState, got MadgradState(" in text
    assert "madgrad is not here: put optax's own into an aj.chain" in text
    text = refusal(aj.adam(0.1), optax.inject_hyperparams(optax.adam)(0.1).init(PARAMS))
    assert "Give its inner_state" in text
    with pytest.raises(TypeError, match="optax has no soap: its state cannot go there"):
        export_state(aj.soap(0.1), PARAMS, aj.soap(0.1).init(PARAMS))
    tx = aj.multi_steps(aj.adam(0.1), 2)
    with pytest.raises(TypeError, match=r"give it as peer=…"):
        export_state(tx, PARAMS, tx.init(PARAMS))


def test_what_does_not_fit_is_refused_by_entry_and_path():
    adam, ours = optax.adam(0.1).init(PARAMS), aj.adam(0.1)
    assert "has ScaleByScheduleState(count)" in refusal(ours, optax.adam(SCHEDULE).init(PARAMS))
    assert "tuples of optax's NamedTuples, got a int" in refusal(ours, 3)
    other = optax.adam(0.1).init({"w": PARAMS["b"], "b": PARAMS["b"]})
    assert "ScaleByAdamState.mu['w'] is float32[3], where float32[4, 3]" in refusal(ours, other)
    less = optax.adam(0.1).init({"w": PARAMS["w"]})
    assert "it has nothing more where these have ['b']" in refusal(ours, less)
    nan = (adam[0]._replace(nu=jax.tree.map(lambda x: x / 0, PARAMS)), adam[1])
    assert "ScaleByAdamState.nu['b'] for adam(" in refusal(ours, nan)
    assert "a chain of 1 goes on from" in refusal(aj.chain(ours), adam)
    groups = optax.partition({"a": contrib.adopt(0.1), "c": contrib.adopt(0.1)}, LABELS)
    mine = aj.partition({"b": aj.adopt(0.1), "c": aj.adopt(0.1)}, [("w", "b"), ("b", "c")])
    assert "the state is of the groups ['a', 'c']" in refusal(mine, groups.init(PARAMS))
    scheduled = aj.adam(0.1, b1=optax.constant_schedule(0.9))
    assert "b1 of adam(" in refusal(scheduled, adam)
    embedding = {"embedding": PARAMS["w"], "b": PARAMS["b"]}
    text = refusal(aj.muon(0.1), contrib.muon(0.1).init(embedding), embedding)
    assert "optax's muon takes all with two axes, as with where=" in text
    number = jnp.ones(())
    assert "SM3 keeps 0 sums for an array of shape ()" in refusal(
        aj.sm3(0.1), optax.sm3(0.1).init(number), number
    )


def test_a_count_that_optax_has_not_is_asked_for():
    ours, saved = aj.sgd(SCHEDULE), optax.sgd(0.1).init(PARAMS)
    assert "needs the number of steps taken: give it as step=" in refusal(ours, saved)
    assert import_state(ours, PARAMS, saved, step=7)[1].count == 7
    assert "step=-1 must be a whole number" in refusal(ours, saved, step=-1)
    tx, matrix = aj.scale_by_muon(), {"w": PARAMS["w"]}
    with pytest.raises(ValueError, match=r"optax\.contrib\.muon needs the number of steps taken"):
        export_state(tx, matrix, tx.init(matrix))
    saved = export_state(tx, matrix, tx.init(matrix), step=3)
    assert saved.count == 3
    np.testing.assert_array_equal(saved.ns_coeffs, contrib.scale_by_muon().init(matrix).ns_coeffs)


def test_nothing_is_shared_with_what_was_given():
    """So that the one state can be donated while the other goes on."""
    ours, theirs = aj.cocob(), contrib.cocob(1.0)
    saved = theirs.init(PARAMS)
    state = import_state(ours, PARAMS, saved)
    given = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((PARAMS, saved))}
    mine = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert given.isdisjoint(mine)
    assert len(mine) == len(set(mine))
    back = export_state(ours, PARAMS, state)
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(back)}.isdisjoint({*given, *mine})

"""A run that changes: what is kept of its state is what it was, and all else is as at first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

PARAMS = {"body": jnp.ones((4, 2)), "head": jnp.ones(2)}
LABELS = {"body": "body", "head": "head"}
SMALL = aj.Blocks(min_size=0)


def after(tx, params=PARAMS, steps=3):
    """The state after some steps."""
    state, gradients = tx.init(params), like(params)
    for _ in range(steps):
        _, state = tx.update(gradients, state, params)
    return state


def like(params):
    """Gradients of all parameters, those of new arrays among them."""
    return jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
    )


def updated(tx, state, params):
    return tx.update(like(params), state, params)[0]


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [
        (aj.adam(1e-3), aj.adamw(1e-2, weight_decay=0.1), 0),
        (aj.adam(1e-3, storage=SMALL), aj.adam(1e-2, storage=SMALL), 0),
        (aj.adafactor(1e-3), aj.adafactor(1e-2), 0),
        (aj.muon(1e-3), aj.muon(1e-2), 0),
        (aj.prodigy(), aj.prodigy(weight_decay=0.1), 0),
        (aj.soap(1e-3), aj.chain(aj.clip(1.0), aj.soap(1e-3)), 0),
        (aj.chain(aj.clip(1.0), aj.sgd(0.1, momentum=0.9)), aj.sgd(0.1, momentum=0.9), 0),
        # What the wrappers themselves count: three of one, three and the means of the other.
        (aj.adam(1e-3), aj.skip_nonfinite(aj.multi_steps(aj.adam(1e-3), 2)), 10),
        (optax.adamw(1e-3), aj.adamw(1e-3), 0),
        (optax.adam(1e-3), optax.adam(1e-2), 0),
    ],
    ids=lambda x: str(x)[:12],
)
def test_a_rule_that_stays_keeps_everything(old, new, more):
    # The numbers are no matter: each is another array.
    state = jax.tree.map(lambda x: x + 1, old.init(PARAMS))
    carried, report = aj.carry_state(state, new, PARAMS)
    assert jax.tree.structure(carried) == jax.tree.structure(new.init(PARAMS))
    assert not report.left_out
    before, now = ({id(x) for x in jax.tree.leaves(each)} for each in (state, carried))
    assert before <= now
    assert len(now - before) == more


def test_it_goes_on_as_if_nothing_had_happened():
    tx = aj.adam(aj.schedules.linear_schedule(0.1, 0.0, 10))
    state = after(tx)
    carried, _ = aj.carry_state(state, aj.chain(aj.clip(10.0), tx), PARAMS)
    assert_same(updated(aj.chain(aj.clip(10.0), tx), carried, PARAMS), updated(tx, state, PARAMS))


@pytest.mark.parametrize("kind", ["frozen before", "added", "resized"])
def test_new_arrays_in_a_group_of_their_own_start_as_in_a_new_run(kind):
    tx = aj.adam(0.1)
    if kind == "frozen before":
        params, groups = PARAMS, LABELS
        old = aj.partition({"body": None, "head": tx}, groups)
        state, new, others = after(old), ["body"], ["head"]
    else:
        shape = {"added": (3,), "resized": (5, 2)}[kind]
        name = {"added": "lora", "resized": "body"}[kind]
        old, params = tx, PARAMS | {name: jnp.ones(shape)}
        groups = LABELS | {"head": "kept", "body": "kept"} | {name: "new"}
        state, new, others = after(tx), [name], sorted(set(PARAMS) - {name})
    trained = aj.partition(dict.fromkeys(set(groups.values()), tx), groups)
    carried, report = aj.carry_state(state, trained, params)
    assert report.initialised == tuple(f"['{name}']" for name in new)
    assert report.kept == tuple(f"['{name}']" for name in others)
    updates = updated(trained, carried, params)
    going_on, at_first = updated(old, state, PARAMS), updated(tx, tx.init(params), params)
    for name in others:
        np.testing.assert_array_equal(updates[name], going_on[name])
    for name in new:
        np.testing.assert_array_equal(updates[name], at_first[name])


def test_a_group_gets_another_optimizer():
    schedule = aj.schedules.linear_schedule(0.1, 0.0, 10)
    before = {"body": aj.adamw(schedule), "head": aj.adamw(schedule)}
    state = after(aj.partition(before, LABELS))
    tx = aj.partition(before | {"body": aj.lion(schedule)}, LABELS)
    carried, report = aj.carry_state(state, tx, PARAMS)
    assert (report.kept, report.initialised) == (("['head']",), ("['body']",))
    assert "no ScaleByLionState" in str(report)
    assert report.left_out == tuple(
        f".inner_states['body'].inner_state[0].{x}" for x in ("count", "mu['body']", "nu['body']")
    )
    groups = {name: each.inner_state for name, each in carried.inner_states.items()}
    assert_same(groups["head"], state.inner_states["head"].inner_state)
    # Lion's state is new, and the schedule has its place still.
    assert [
        int(x) for x in optax.tree.get_all_with_path(groups["body"], "count") for x in x[1:]
    ] == [0, 3]


def test_a_count_for_kept_and_for_new_arrays_is_refused():
    tx, params = aj.adam(0.1), PARAMS | {"lora": jnp.ones(3)}
    state = after(tx)
    message = (
        r"Adam has one count .*params\['body'\], \['head'\], and .* anew, params\['lora'\]\. Give"
    )
    with pytest.raises(ValueError, match=message):
        aj.carry_state(state, tx, params)
    # As the message says.
    groups = aj.partition({"kept": tx, "new": tx}, [("lora", "new"), (".*", "kept")])
    assert aj.carry_state(state, groups, params)[1].initialised == ("['lora']",)
    restarted, report = aj.carry_state(state, tx, params, mixed="restart")
    assert_same(restarted, tx.init(params))
    assert not report.kept
    kept, report = aj.carry_state(state, tx, params, mixed="keep")
    assert report.initialised == ("['lora']",)
    assert int(kept[0].count) == 3
    np.testing.assert_array_equal(kept[0].mu["body"], state[0].mu["body"])
    np.testing.assert_array_equal(kept[0].nu["lora"], np.zeros(3))


def test_what_counts_nothing_needs_no_group():
    params = PARAMS | {"lora": jnp.ones(3)}
    for storage in (None, SMALL):  # Which counts, for the sake of its random bits.
        tx = aj.sgd(0.1, momentum=0.9, storage=storage)
        _, report = aj.carry_state(tx.init(PARAMS), tx, params)
        assert report.initialised == ("['lora']",)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, params))
    tx = aj.compensate(aj.sgd(0.1))
    carried, report = aj.carry_state(tx.init(low[0]), tx, low[1])
    assert report.kept == ("['body']", "['head']")
    assert float(jnp.abs(carried.correction["lora"].astype(jnp.float32)).max()) == 0


def test_groups_that_become_one_need_one_count():
    tx = aj.adam(0.1)
    groups = aj.partition({"body": tx, "head": tx}, LABELS)
    state = after(groups)
    carried, _ = aj.carry_state(state, tx, PARAMS)
    assert_same(updated(tx, carried, PARAMS), updated(groups, state, PARAMS))
    only_head = aj.partition({"body": None, "head": tx}, LABELS)
    state, _ = aj.carry_state(after(only_head), groups, PARAMS)
    with pytest.raises(ValueError, match="which come from states with other ones"):
        aj.carry_state(groups.update(like(PARAMS), state, PARAMS)[1], tx, PARAMS)


def test_a_group_that_becomes_two_has_its_count_twice():
    schedule = aj.schedules.linear_schedule(0.1, 0.0, 10)
    tx = aj.adam(schedule)
    state = after(tx)
    groups = aj.partition({"body": tx, "head": tx}, LABELS)
    carried, report = aj.carry_state(state, groups, PARAMS)
    assert not report.initialised
    assert_same(updated(groups, carried, PARAMS), updated(tx, state, PARAMS))
    assert len({x.unsafe_buffer_pointer() for x in jax.tree.leaves(carried)}) == 8


def test_one_of_two_equal_rules_has_what_there_was_of_one():
    one, two = aj.chain(aj.ema(0.9)), aj.chain(aj.ema(0.9), aj.ema(0.9))
    state = after(one)
    carried, report = aj.carry_state(state, two, PARAMS)
    assert_same(carried[0], state[0])
    assert_same(carried[1], two.init(PARAMS)[1])
    assert "another EmaState has that of the old state" in str(report)


def test_an_accumulation_with_a_new_array_begins_again():
    tx = aj.multi_steps(aj.sgd(0.1, momentum=0.9), 2)
    state = after(tx)
    assert int(state.mini_step) == 1
    carried, report = aj.carry_state(state, tx, PARAMS | {"lora": jnp.ones(3)})
    assert int(carried.mini_step) == 0
    assert all(not np.any(x) for x in jax.tree.leaves(carried.acc_grads))
    assert "of which some are new" in str(report)
    np.testing.assert_array_equal(
        carried.inner_opt_state[0].trace["body"], state.inner_opt_state[0].trace["body"]
    )


def test_adamax_is_not_adam_where_the_old_optimizer_is_known():
    state = aj.adamax(0.1).init(PARAMS)
    assert aj.carry_state(state, aj.adam(0.1), PARAMS)[1].kept  # Both have a ScaleByAdamState.
    _, report = aj.carry_state(state, aj.adam(0.1), PARAMS, old_tx=aj.adamax(0.1))
    assert not report.kept
    assert "it was AdaMax(eps_in_max=True), and is Adam(" in str(report)
    _, report = aj.carry_state(aj.TrainState.create(PARAMS, aj.adamax(0.1)), aj.adam(0.1))
    assert not report.kept
    with pytest.raises(ValueError, match="old_tx did not make old_state: "):
        aj.carry_state(state, aj.adam(0.1), PARAMS, old_tx=aj.lion(0.1))


def test_a_matrix_that_is_seen_otherwise_starts_anew():
    params = {"w": jnp.ones((4, 4))}
    tx, other = aj.shampoo(0.1), aj.shampoo(0.1, axes=aj.MatrixAxes(rows=-1, columns=-2))
    state = aj.TrainState.create(params, tx)
    assert aj.carry_state(state, aj.shampoo(0.2))[1].kept == ("['w']",)
    _, report = aj.carry_state(state, other)
    assert not report.kept
    assert "its axes were others" in str(report)
    assert "its axes were others" in report._repr_html_()


def test_another_storage_is_converted_first():
    exact, lean = aj.adam(0.1), aj.adam(0.1, storage=SMALL)
    state = exact.init(PARAMS)
    _, report = aj.carry_state(state, lean, PARAMS)
    assert not report.kept
    assert "another storage" in str(report)
    state = aj.convert_storage(exact, lean, PARAMS, state)
    assert aj.carry_state(state, lean, PARAMS)[1].kept == ("['body']", "['head']")


def test_a_training_run_goes_on():
    def loss(params, batch):
        return sum(jnp.sum(jnp.square(x)) for x in params.values()) * batch

    step, old = aj.train_step(loss), aj.partition({"body": None, "head": aj.adam(0.1)}, LABELS)
    state = aj.TrainState.create(
        PARAMS, old, rng=jax.random.key(3), loss_scale=aj.LossScale(8.0), average=aj.average(0.9)
    )
    state, _ = step(state, 1.0)
    new = aj.partition({"body": aj.adam(0.01), "head": aj.adam(0.1)}, LABELS)
    before = jax.tree.map(jnp.copy, state)
    state, report = aj.carry_state(state, new)
    assert int(state.step) == 1
    for name in ("params", "rng", "loss_scale", "skipped"):
        assert_same(*(jax.tree.map(key_data, getattr(each, name)) for each in (state, before)))
    assert report.initialised == ("['body']",)  # Its average is kept, which was that of all.
    assert_same(state.eval_params(), before.eval_params())
    state, metrics = step(state, 1.0)
    assert (int(state.step), np.isfinite(metrics["loss"])) == (2, True)
    assert float(state.params["body"][0, 0]) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("average", "around"),
    [
        (aj.average(0.9), lambda tx: tx),
        (aj.latest_average(2, 1), lambda tx: aj.skip_nonfinite(tx, max_consecutive=2)),
    ],
    ids=["average", "latest, in a wrapper"],
)
def test_an_average_of_the_parameters_is_kept_unless_it_is_left_out(average, around):
    groups = aj.partition({"body": None, "head": aj.adam(0.1)}, LABELS)
    old = aj.TrainState.create(PARAMS, around(groups), average=average)
    step = aj.train_step(lambda params, batch: jnp.sum(params["head"] ** 2) * batch)
    for _ in range(2):
        old, _ = step(old, 1.0)
    seen = old.params  # As which an average that begins anew begins.
    assert float(old.eval_params()["head"][0]) != float(seen["head"][0])
    tx = around(aj.adam(0.1))
    state, report = aj.carry_state(old, tx, mixed="keep")
    assert_same(state.eval_params(), old.eval_params())
    assert not any("average" in path or "latest" in path for path in report.left_out)
    # Left out, replaced, and given up for one that evaluates with something else.
    without, report = aj.carry_state(old, tx, mixed="keep", average=None)
    assert_same(without.eval_params(), seen)
    assert report.left_out
    other, _ = aj.carry_state(old, tx, mixed="keep", average=aj.tail_average(5))
    assert_same(other.eval_params(), seen)
    with pytest.raises(ValueError, match="average='drop' is not known: it must be \"keep\", None"):
        aj.carry_state(old, tx, average="drop")
    free, _ = aj.carry_state(old, aj.schedule_free(aj.sgd(0.1), 0.1), mixed="keep")
    assert_same(free.eval_params(), seen)


@pytest.mark.parametrize(
    "tx",
    [
        lambda rate: aj.adam(rate),
        lambda rate: aj.sgd(rate),
        lambda rate: aj.chain(aj.clip_by_global_norm(1.0), aj.adam(rate)),
        lambda rate: aj.partition({"body": None, "head": aj.adam(rate)}, LABELS),
    ],
    ids=["adam", "sgd", "chain", "partition"],
)
def test_a_new_optimizer_without_the_average_is_told_to_take_it(tx):
    step = aj.train_step(lambda params, batch: jnp.sum(params["head"] ** 2) * batch)
    state = aj.TrainState.create(PARAMS, tx(0.1), average=aj.average(0.9))
    with pytest.raises(ValueError, match="the average belongs to the optimizer") as caught:
        step(state.replace(tx=tx(1e-3)), 1.0)
    advised = "state.replace(tx=aj.chain(aj.adam(1e-3), aj.average(0.9)))"
    assert str(caught.value).endswith(f"{advised}.")
    if repr(tx(1e-3)) == repr(aj.adam(1e-3)):
        state = eval(advised)
    else:  # In one chain, "as the last of its chain".
        new = tx(1e-3)
        members = new.data.members if repr(new).startswith("chain") else [new]
        state = state.replace(tx=aj.chain(*members, aj.average(0.9)))
    for _ in range(2):
        state, _ = step(state, 1.0)
    assert float(state.eval_params()["head"][0]) != float(state.params["head"][0])


def test_a_state_of_a_frozen_group_is_told_to_be_carried():
    frozen = aj.partition({"body": None, "head": aj.adam(0.1)}, LABELS)
    trained = aj.partition({"body": aj.adam(0.1), "head": aj.adam(0.1)}, LABELS)
    others = aj.partition({"all": aj.adam(0.1)}, {"body": "all", "head": "all"})
    state = frozen.init(PARAMS)
    for tx in (trained, others):
        with pytest.raises(ValueError, match=r"with aj\.carry_state, which keeps what fits"):
            tx.update(PARAMS, state, PARAMS)
    new, _ = aj.carry_state(state, trained, PARAMS, old_tx=frozen)
    trained.update(PARAMS, new, PARAMS)


def key_data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_shapes_make_a_state_of_shapes():
    tx, params = aj.adam(0.1), PARAMS | {"lora": jnp.ones(3)}
    groups = aj.partition({"kept": tx, "new": tx}, [("lora", "new"), (".*", "kept")])
    state = after(tx)
    carried, report = aj.carry_state(state, groups, params)
    shapes = jax.eval_shape(lambda *each: each, state, params)
    direct, of_shapes = aj.carry_state(shapes[0], groups, shapes[1])
    traced = jax.eval_shape(lambda old, new: aj.carry_state(old, groups, new)[0], *shapes)
    assert report == of_shapes
    for each in (direct, traced):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), each) == jax.tree.map(
            lambda x: (x.shape, x.dtype), carried
        )


def test_what_is_kept_lies_where_it_was(make_mesh):
    mesh = make_mesh(8)
    params = {"w": jnp.ones((64, 4)), "b": jnp.ones(8)}
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(params, everywhere)
    labels = {"w": "w", "b": "b"}
    frozen = aj.partition({"w": aj.adam(0.1), "b": None}, labels)
    state = aj.TrainState.create(params, frozen, shard="x")
    tx = aj.partition({"w": aj.adam(0.1), "b": aj.adam(0.1)}, labels)
    new, _ = aj.carry_state(state, tx, shard="x")
    made = aj.TrainState.create(params, tx, shard="x")
    for name in ("params", "opt_state"):
        one, other = (jax.tree.map(lambda x: x.sharding, getattr(x, name)) for x in (new, made))
        assert one == other
    old = state.opt_state.inner_states["w"].inner_state[0].mu["w"]
    assert new.opt_state.inner_states["w"].inner_state[0].mu["w"] is old


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s: aj.carry_state(aj.adam(0.1), s, PARAMS),
            TypeError,
            "is an optimizer, .* order is",
        ),
        (
            lambda s: aj.carry_state(PARAMS, aj.adam(0.1), PARAMS),
            TypeError,
            "is no state of an opt",
        ),
        (lambda s: aj.carry_state(s, aj.adam, PARAMS), TypeError, r"Call it: adam\("),
        (lambda s: aj.carry_state(s, aj.adam(0.1)), TypeError, "needs the parameters, unless"),
        (lambda s: aj.carry_state(s, aj.adam(0.1), {"w": "x"}), TypeError, r"params\['w'\] is 'x'"),
        (lambda s: aj.carry_state(s, aj.adam(0.1), PARAMS, mixed=None), ValueError, "'restart'"),
        (
            lambda s: aj.carry_state(s, aj.adam(0.1), PARAMS, shard="x"),
            TypeError,
            "for a TrainState",
        ),
        (
            lambda s: aj.carry_state(
                aj.TrainState.create(PARAMS, aj.adam(0.1)), aj.adam(0.1), old_tx=aj.adam(0.1)
            ),
            TypeError,
            "a TrainState has its own",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(after(aj.adam(0.1), steps=0))


def test_a_state_that_a_step_has_used_up_is_refused():
    state = aj.TrainState.create(PARAMS, aj.adam(0.1))
    aj.train_step(lambda params, batch: jnp.sum(params["head"]) * batch)(state, 1.0)
    with pytest.raises(ValueError, match="a step wrote over it"):
        aj.carry_state(state, aj.adam(0.1), PARAMS)

"""One of several processes that train together, which started_together.py starts."""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

NUMBERS = np.random.default_rng(0)
PARAMS = {
    "hidden": NUMBERS.normal(size=(16, 512)).astype(np.float32) / 4,
    "out": NUMBERS.normal(size=(512, 8)).astype(np.float32) / 22,
}
BATCHES = NUMBERS.normal(size=(6, 16, 16)).astype(np.float32)
WAYS = {
    "replicated": ((), None, None),
    "fsdp": (("data",), None, None),
    "zero": ((), "data", None),
    "zero-int8": ((), "data", "int8"),
}
"""The parameters' partition, the axis that the optimizer's state is split over, and its storage."""


def mesh():
    return jax.make_mesh((len(jax.devices()),), ("data",))


def global_array(x, *spec):
    """An array of all processes, each of which has the whole of it."""
    sharding = NamedSharding(mesh(), PartitionSpec(*spec))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def loss(params, batch, rng):
    outputs = jnp.tanh(batch @ params["hidden"]) @ params["out"]
    noise = jax.random.normal(rng, (8,))[None]
    errors = jnp.mean((outputs - batch[:, :8] - 0.1 * noise) ** 2, axis=1)
    return jnp.mean(errors), errors


def held_out(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["hidden"]) @ params["out"] - batch[:, :8]) ** 2)


def batches(first=0, count=6, pause=0.0):
    for number in range(first, first + count):
        time.sleep(pause)
        yield global_array(BATCHES[number % 6], "data")


def created(name, scale=1.0):
    spec, shard, storage = WAYS[name]
    params = {key: global_array(scale * x, *spec) for key, x in PARAMS.items()}
    tx = aj.adam(1e-2, storage=storage)
    return aj.TrainState.create(params, tx, rng=jax.random.key(0), shard=shard)


def places(state):
    return jax.tree.map(lambda x: x.sharding, (state.params, state.opt_state))


def on_host(x):
    everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(x))


def message_of(error, call):
    try:
        call()
    except error as caught:
        return str(caught)
    raise AssertionError("no error")


def train(folder):
    """Trains in all ways, each with a checkpoint halfway; is interrupted, and goes on."""
    index, step, results = jax.process_index(), aj.train_step(loss, has_aux=True), {}
    for name in WAYS:
        state = created(name)
        before = places(state)
        checkpoints = aj.Checkpoints(folder / name, every=3)
        state, history = aj.fit(state, step, batches(), progress=True, checkpoints=checkpoints)
        assert before == places(state), name
        results |= {f"{name}/{key}": on_host(x) for key, x in state.params.items()}
        results |= {f"{name}/loss": history["loss"], f"{name}/errors": history["aux"]}

        again = aj.restore_checkpoint(folder / name, created(name, scale=2.0), step=3)
        assert before == places(again), name
        again, _ = aj.fit(again, step, batches(first=3, count=3), progress=False)
        for key, x in again.params.items():
            np.testing.assert_array_equal(on_host(x), results[f"{name}/{key}"], err_msg=name)

    def stopped_early(state, best, **options):
        stopping = aj.EarlyStopping(patience=1, minimum_change=1e9)
        state, history = aj.fit(
            state,
            step,
            batches(),
            evaluate=aj.Evaluation(held_out, [global_array(BATCHES[0], "data")]),
            evaluate_every=2,
            callback=[best, stopping],
            progress=False,
            checkpoints=aj.Checkpoints(folder / "early", every=2),
            **options,
        )
        assert int(state.step) == 4
        assert history.stopped_by.startswith("EarlyStopping")
        return history

    best, again = aj.KeepBest(), aj.KeepBest()
    history = stopped_early(created("fsdp"), best, log_every=2, log_to=folder / "log.csv")
    assert history["eval_step"].tolist() == [2, 4]
    results |= {"evaluated": history["eval_loss"], "best": on_host(best.params["out"])}
    # Restored, the callbacks remember it, and no step is taken.
    assert not stopped_early(aj.restore_checkpoint(folder / "early", created("fsdp")), again)
    assert again.params["out"].sharding == best.params["out"].sharding
    np.testing.assert_array_equal(on_host(again.params["out"]), results["best"])
    assert again.step == best.step

    told = message_of(
        ValueError, lambda: aj.fit(created("zero", scale=1.0 + index), step, batches())
    )
    assert "state.params['hidden'] is float32[16, 512] on 4 devices, of the bits" in told, told
    wrong = created("zero").replace(tx=aj.adam(1e-2 * (1 + index)))
    told = message_of(ValueError, lambda: aj.restore_checkpoint(folder / "zero", wrong))
    assert "learning_rate is 0.01 in process 0, and 0.02 in process 1" in told, told
    mine = folder / "zero" if index == 0 else folder / "elsewhere"
    error = RuntimeError if index == 0 else FileNotFoundError
    told = message_of(error, lambda: aj.restore_checkpoint(mine, created("zero")))
    assert "elsewhere is no folder" in told, told

    if index == 1:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    state, history = aj.fit(
        state,
        step,
        batches(count=100_000, pause=0.02),
        progress=False,
        checkpoints=aj.Checkpoints(folder / "stopped", minutes=0.2 / 60, keep=2),
    )
    assert history.interrupted
    stopped_at = int(state.step)
    again = aj.restore_checkpoint(folder / "stopped", created("zero-int8"), step=stopped_at)
    np.testing.assert_array_equal(on_host(again.params["out"]), on_host(state.params["out"]))
    np.savez(folder / f"{index}.npz", **results, stopped_at=stopped_at)


def save(folder):
    """Trains with each way of splitting, and saves."""
    for name in WAYS:
        checkpoints = aj.Checkpoints(folder / name)
        aj.fit(created(name), aj.train_step(loss, has_aux=True), batches(), checkpoints=checkpoints)


def restore(folder):
    """Restores what other processes saved, each in every way, and compares it bit for bit."""
    for name in WAYS:
        expected = np.load(folder / f"{name}.npz")
        for way in WAYS:
            if (name == "zero-int8") != (way == "zero-int8"):
                continue  # Another storage is another state.
            state = aj.restore_checkpoint(folder / name, created(way, scale=0.0))
            found = jax.tree.leaves((state.params, state.opt_state, state.rng))
            found[-1] = jax.random.key_data(found[-1])
            for number, x in enumerate(found):
                np.testing.assert_array_equal(on_host(x), expected[f"{number}"], err_msg=name)
            assert places(state) == places(created(way))


def go_on(folder, steps):
    """Takes so many steps from the newest checkpoint, saves every second one, and prints the numbers."""
    state = created("zero-int8")
    if any(path.name.isdigit() for path in folder.glob("*")):
        state = aj.restore_checkpoint(folder, state)
    first = int(state.step)
    print(f"from {first}", flush=True)
    state, _ = aj.fit(
        state,
        aj.train_step(loss, has_aux=True),
        batches(first, int(steps) - first),
        callback=lambda state, _: print(int(state.step), flush=True),
        progress=False,
        checkpoints=aj.Checkpoints(folder, every=2, keep=2),
    )
    end = on_host(state.params["hidden"])
    if jax.process_index() == 0:
        np.save(folder / "end.npy", end)


def fail(folder, which, how):
    """One of them fails in its sixth step, has no more batches, or evaluates to something else."""

    def until_then():
        yield from batches(count=5)
        if jax.process_index() == int(which):
            print("now", flush=True)
            if how == "raises":
                raise OSError("the disk of this machine is full")
            return
        yield from batches(count=100)

    step = aj.train_step(loss, has_aux=True)
    if how == "evaluates":
        index = float(jax.process_index())
        aj.fit(created("zero"), step, batches(), progress=False, evaluate=lambda params: index)
    aj.fit(created("zero"), step, until_then(), progress=False)


ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
SETTINGS = {
    "learning_rate": [0.01, 0.03, 0.1, 0.3, 1.0],
    "activation": ["tanh", "tanh", "tanh", "relu", "relu"],
}
"""Five runs of two programs, of which two processes have two and three."""
SPACE = {"learning_rate": aj.LogUniform(1e-2, 1.0)}


def run_on(inputs, learning_rate, activation, seed):
    """A run whose results are of several dtypes, and too large to be handed over at once."""
    tx = aj.adam(learning_rate)
    w = jax.random.normal(jax.random.key(seed), (16, 8))

    def loss(w):
        return jnp.mean((ACTIVATIONS[activation](inputs @ w) - 1) ** 2)

    def step(carry, _):
        w, state = carry
        value, gradients = jax.value_and_grad(loss)(w)
        updates, state = tx.update(gradients, state, w)
        return (w + updates, state), value

    (w, _), losses = jax.lax.scan(step, (w, tx.init(w)), length=10)
    return {"loss": losses, "half": w.astype(jnp.bfloat16), "large": jnp.tile(w, (2048, 1))}


def found(inputs):
    """What a sweep, a comparison and a finder come to, by name."""
    train = functools.partial(run_on, inputs)
    swept = aj.sweep(train, table=SETTINGS, seeds=1, progress=True)
    results = {f"sweep/{name}": x.astype(np.float32) for name, x in swept.outputs.items()}
    results["sweep/confirmed"] = swept.best(confirm=3).objective
    quadratic = aj.problems.quadratic(dimension=4, condition=100.0)
    optimizers = {"SGD": (aj.sgd, SPACE), "Adam": (aj.adam, SPACE)}
    compared = aj.compare(
        optimizers, quadratic, budget=5, studies=2, seeds=3, tuning_seeds=1, steps=10
    )
    for name, finalist in compared.finalists[quadratic.name].items():
        results[f"compare/{name}"] = finalist.curves
        for study, tuning in enumerate(finalist.tunings):
            results[f"compare/{name}/tuning/{study}"] = tuning.outputs
    step = aj.train_step(lambda w, batch: jnp.sum(jnp.array([1.0, 10.0]) * w**2) / 2)
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(1.0))
    rates = aj.find_learning_rate(state, step, [0.0] * 4, rates=[0.03, 0.1, 0.3])
    return results | {"find": rates.losses}


def search(folder):
    """Searches with the other processes; what is not the same in all of them is refused."""
    index = jax.process_index()
    np.savez(folder / f"{index}.npz", **found(BATCHES[0]))

    def refused(call, *parts, error=ValueError):
        told = message_of(error, call)
        assert all(part in told for part in parts), told

    def sweep(inputs=BATCHES[0], extra=0.0, rates=(0.1, 0.2), seeds=1, **options):
        whole = jnp.asarray(inputs)

        def train(learning_rate, seed):
            return run_on(whole, learning_rate + extra, "tanh", seed)["loss"]

        return aj.sweep(train, learning_rate=rates, seeds=seeds, **options)

    def compare(factory, problem, space=SPACE, **options):
        return aj.compare(
            {"own": (factory, space)}, problem, 2, studies=1, tuning_seeds=1, **options
        )

    refused(
        lambda: sweep(rates=[0.1, 0.2 + index]),
        "The sweep is not the same in all processes: the axis learning_rate is [0.1, 0.2] in process 0, "
        "and [0.1, 1.2] in process 1.",
    )
    refused(lambda: sweep(seeds=[7, 8 + index]), "seeds is [7, 8] in", "and [7, 9] in")
    refused(lambda: sweep(maximize=index == 1), "maximize is False in process 0, and True in")
    refused(lambda: sweep(extra=float(index)), "train is a program of")
    refused(lambda: sweep(BATCHES[index]), "array 0 that train reads is float32[16, 16]")
    refused(lambda: sweep(global_array(BATCHES[0])), "train reads float32[16, 16], which is on dev")
    one, two = (aj.problems.quadratic(dimension=4, condition=10.0**power) for power in (1, 2))
    refused(
        lambda: compare((aj.sgd, aj.adam)[index], one),
        "The comparison is not the same in all processes: optimizers['own'] is (<function sgd>",
        "and (<function adam>",
    )
    refused(lambda: compare(aj.sgd, (one, two)[index]), f"target and measure of {one.name} is (")
    refused(lambda: compare(aj.sgd, one, seeds=2 + index), "seeds is 2 in process 0, and 3 in")
    refused(lambda: compare(aj.sgd, one, space={"learning_rate": 1.0 + index}), "1.0}", "2.0}")
    other = dataclasses.replace(two, target=one.target)
    refused(lambda: compare(aj.sgd, (one, other)[index]), f"own on {one.name}, ", "of the bits")
    other = dataclasses.replace(two, name="other")
    refused(lambda: compare(aj.sgd, (one, other)[index]), "problems is ['quadratic'] in process 0")

    # What fails in one of them fails in all.
    def check(loss):
        if index == 1:
            raise OSError("the disk of this machine is full")
        return loss

    def failing(learning_rate):
        loss = jnp.square(learning_rate)
        shape = jax.ShapeDtypeStruct((), np.float32)
        return jax.pure_callback(check, shape, loss, vmap_method="sequential")

    error = (RuntimeError, ValueError)[index]
    refused(lambda: sweep(batch_size=1 - index), "batch_size=0 must be", error=error)
    error = (RuntimeError, jax.errors.JaxRuntimeError)[index]
    told = "the disk of this machine is full"
    refused(lambda: aj.sweep(failing, learning_rate=[1.0, 2.0]), told, error=error)
    assert sweep().objective.shape == (2, 1)  # They go on, if they want to.


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Side by side, two programs may each wait for the one that has not started in the other process.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        f"127.0.0.1:{os.environ['PORT']}",
        int(os.environ["COUNT"]),
        int(os.environ["INDEX"]),
        initialization_timeout=120,
        heartbeat_timeout_seconds=30,
    )
    what = {"train": train, "save": save, "restore": restore, "go on": go_on, "fail": fail}
    what |= {"search": search}
    what[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])

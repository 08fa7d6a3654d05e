"""Train the small GPT of language_model.py with several processes, kill one of them, and go on.

    pip install -e ".[examples]"
    python many_processes.py

starts two processes on this machine, which train data parallel: each has half of every batch, all of the
parameters, and half of AdamW's state (ZeRO). They do so twice. The second time one of them is killed in
the middle; the other one ends, both are started again, go on from the last checkpoint, and end with the
same loss, bit for bit. The last lines say it:

    disturbed: step 40, loss …, which is …
    the same loss: yes

On a cluster its launcher starts the processes, one for each machine or GPU, and JAX finds the others (with
Slurm, Open MPI, Kubernetes, and on TPUs):

    srun python many_processes.py --cluster --steps 3000 --checkpoints /shared/gpt

The folder must be one that all of them see. Run it again after an interruption, on as many devices as
there are then.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    import language_model
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error

import adaptive_jax as aj

# --- What each process does -------------------------------------------------------------------------


def train(arguments):
    """Train up to arguments.steps, from the last checkpoint if there is one."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    characters, text, _ = language_model.load()

    # Computed on all devices, each of which then has the whole of the parameters.
    init = partial(
        language_model.init, vocabulary=len(characters), layers=2, width=64, length=arguments.length
    )
    params = jax.jit(lambda: init(jax.random.key(0)), out_shardings=everywhere)()
    tx = aj.chain(aj.clip_by_global_norm(1.0), aj.adamw(3e-3, b2=0.98, weight_decay=0.1))
    state = aj.TrainState.create(params, tx, shard="data")  # ZeRO: the optimizer's state is split.
    if any(path.name.isdigit() for path in arguments.checkpoints.glob("*")):
        state = aj.restore_checkpoint(arguments.checkpoints, state)
    first_step = int(state.step)
    say(f"{jax.process_count()} processes, {jax.device_count()} devices, from step {first_step}")

    def batches():
        """Each process makes its rows of a batch, which depends on nothing but its step."""
        share = slice(jax.process_index(), None, jax.process_count())
        for batch in language_model.batches(
            text, batch=arguments.batch, length=arguments.length, seed=0, first_step=first_step
        ):
            yield jax.make_array_from_process_local_data(rows, batch[share])

    def report(state, metrics):
        number = int(state.step)
        if number % 5 == 0:
            say(f"step {number}, loss {metrics['loss']:.3f}")

    state, history = aj.fit(
        state,
        aj.train_step(language_model.loss_function),
        batches(),
        steps=arguments.steps - first_step,
        callback=report,
        progress=False,
        checkpoints=aj.Checkpoints(arguments.checkpoints, every=arguments.every, keep=2),
    )
    if history.interrupted:  # Ctrl-C or the cluster: all have stopped after the same step.
        say(f"stopped after step {int(state.step)}; the same command goes on from there")
    elif first_step < arguments.steps:
        loss = float(history["loss"][-1])
        say(f"step {int(state.step)}, loss {loss:.3f}, which is {loss.hex()}")


def say(text):
    if jax.process_index() == 0:
        print(text, flush=True)


# --- Two processes on this machine ------------------------------------------------------------------


def start(arguments, checkpoints):
    """The two of them. What the first one prints can be read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, __file__, "--address", f"127.0.0.1:{port}"),
        *("--checkpoints", checkpoints, "--steps", arguments.steps, "--every", arguments.every),
        *("--batch", arguments.batch, "--length", arguments.length),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    processes = []
    for index in range(2):
        # What a process says whose peer was killed is long: it is kept for what was not to be.
        with Path(f"{checkpoints}-{index}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*map(str, command), "--process", str(index)],
                    env=environment,
                    stdout=subprocess.PIPE if index == 0 else log,
                    stderr=log,
                    text=True,
                )
            )
    return processes


def run(arguments, name, checkpoints, kill_at=None):
    """Print what the first process says until both have ended, and return the last line of it.

    kill_at: the step at which to kill the second one.
    """
    processes, last = start(arguments, checkpoints), ""
    try:
        for line in processes[0].stdout:
            if not line.startswith(("step", "2 processes")):
                continue  # What the library for collectives says.
            last = line.strip()
            print(f"{name}: {last}", flush=True)
            if kill_at is not None and last.startswith(f"step {kill_at},"):
                print(f"{name}: process 1 is killed", flush=True)
                processes[1].send_signal(signal.SIGKILL)
                kill_at = None
        codes = [each.wait() for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    return last, codes


def launch(arguments):
    with tempfile.TemporaryDirectory() as folder:
        expected, codes = run(arguments, "undisturbed", Path(folder) / "undisturbed")
        if codes != [0, 0]:
            logs = "\n".join(log.read_text() for log in sorted(Path(folder).glob("*.log")))
            raise SystemExit(f"{logs}\nThe processes ended with {codes}.")
        kill_at = arguments.steps // 10 * 5
        run(arguments, "disturbed", Path(folder) / "disturbed", kill_at)
        print("disturbed: process 0 has ended too; both are started again")
        found, codes = run(arguments, "disturbed", Path(folder) / "disturbed")
    same = codes == [0, 0] and found == expected
    print(f"the same loss: {'yes' if same else 'no'}")
    raise SystemExit(not same)


# --- The program ------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(
        description="Train a small GPT with several processes, on this machine or on a cluster."
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=4, help="steps between two checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="pieces of text, on all devices")
    parser.add_argument("--length", type=int, default=32, help="how many characters it looks back")
    parser.add_argument("--checkpoints", type=Path, help="a folder that all processes see")
    parser.add_argument(
        "--cluster", action="store_true", help="this is one of the processes that a launcher starts"
    )
    parser.add_argument("--address", help="of process 0, to start them by hand; with --process")
    parser.add_argument("--process", type=int, help="0 or 1: this is one of two")
    arguments = parser.parse_args()
    if not (arguments.cluster or arguments.address):
        return launch(arguments)
    if arguments.checkpoints is None:
        parser.error("--checkpoints is missing")
    if arguments.cluster:
        jax.distributed.initialize()
    else:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # On CPUs two programs side by side may each wait for one that has not started elsewhere.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.distributed.initialize(arguments.address, num_processes=2, process_id=arguments.process)
    return train(arguments)


if __name__ == "__main__":
    main()

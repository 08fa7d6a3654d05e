"""The loop around a training step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from .._core.arguments import whole
from . import checkpoint as saved
from .agreement import check_alike, facts_of, spans_processes, together
from .arrays import has_arrived, is_lost, is_used_up
from .callbacks import Callback
from .called import Callbacks
from .checked_step import checked_step
from .checkpoint import Checkpoints
from .checkpoint.memories import named
from .epochs import END, Epochs
from .evaluation import Evaluations
from .history import History, Record
from .interrupts import Interrupts
from .logs import Log
from .peers import PeerError, Peers
from .processes import Stops
from .progress import progress_bar
from .state import TrainState
from .stopped import Stopped


def fit(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    batches: Iterable[Any] | Callable[[int], Iterable[Any]],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    evaluate: Callable[..., Any] | None = None,
    evaluate_every: int | None = None,
    callback: Callable[[TrainState, dict[str, Any]], Any] | Callback | Sequence[Any] | None = None,
    progress: bool | None = None,
    log_every: int | None = None,
    log_to: str | os.PathLike[str] | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainState, History]:
    """The loop: one training step per batch, with evaluations, a log, checkpoints and a history.

    Steps and epochs count from this call: to go on with a restored state up to so many steps in all, give
    the rest, `steps=total - int(state.step)`, and the batches that have not been taken.

    The device is never waited for: metrics are fetched many steps at a time, some steps later, and lines
    of the log are written when their numbers have arrived.

    Ctrl-C, or an interrupted notebook cell, ends the loop after the step at hand, and what was reached
    is returned (unless the process ignores it, or has a handler of its own for it);
    `history.interrupted` tells a script with more to do. A second one interrupts at once, or after the
    step at hand if there is one, a third one always.
    Whatever ends the loop otherwise, an error in the batches or the callback, `sys.exit` or that second
    Ctrl-C, has the state that was reached as its attribute `state`, and its history as `history`: the
    state that came in is used up.
    A failure within a step, as where memory is out, leaves no state: `state` is None, and a note says
    which checkpoint was the last one.

    Where an `aj.skip_nonfinite(tx, max_consecutive=…)` in the optimizer has stopped, the loop ends at
    most 64 steps later, with the FloatingPointError of `aj.raise_if_stopped`.

    Where several processes train together (an array of the state is on devices of several), Ctrl-C in
    one of them, or a cluster that takes a machine away, ends the loop of all after the same step. States
    that are not the same in all processes are refused before the first step. An error in one process, or
    fewer batches than another has, ends all of them within seconds: those that wait for it in vain print
    it and exit with 1, since a process that waits in a collective cannot be reached otherwise. All
    evaluate, and must come to the same numbers; process 0 alone prints and writes the log.

    Args:
      state: the state to start from. Its arrays are written over.
      step: what `train_step` returns, or any function like it.
      batches: one batch per step, as long as they last; with `epochs`, also a function from the number of
        the epoch, 0 for the first of this call, to its batches, for a new order in each.
      steps: after how many steps of this call to stop; None for as many as there are batches. More than
        there are batches is an error.
      epochs: how often to go through the batches in this call, instead of steps: 4 more after a restored
        checkpoint, where it is 4. `examples/a_day.py` goes on in the middle of an epoch. What can be gone
        through once, a generator, is refused for more than one. None for once.
      evaluate: what to measure beside the steps: a function of the parameters to evaluate with,
        `state.eval_params()`, that returns a number, called "eval_loss" in the history, or a dict of
        numbers, each called "eval_" and its name. An argument `model_state` gets that of the state; a
        first argument `state` is the state itself, with these parameters in it. `aj.Evaluation(loss_fn,
        batches)` is one, the means over held-out batches. Such a one, and what `jax.jit` made, is
        traced before the first step, and refused there if it is no number, or lacks one that a callback
        looks at.
      evaluate_every: after how many steps, counted by the state's `step`, to evaluate; None for the end of
        each epoch. Either way the last state is evaluated, unless a callback or Ctrl-C ends the loop.
      callback: called after each step with the new state and the metrics, both on the device, to save, to
        print; or an `aj.Callback`, such as `aj.EarlyStopping` and `aj.KeepBest`, which looks at
        evaluations; or a list of such. It stops the loop by returning True, one of NumPy or JAX as well
        (which is waited for); it goes on with False or None. Of several, all are called, and any of them
        stops it. It must not keep the state, which the next step writes over, and cannot change it: that is
        done by a step around the step.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.
      log_every: after how many steps, counted by the state's `step`, to print a line that a cluster's log
        can hold, with the step, its metrics and the steps per second; and one for each evaluation. None for
        no log.
      log_to: a file that gets the same numbers: `.jsonl` for one JSON object a line, with null for what is
        not finite, `.csv` for a table; a name without an ending is a folder for TensorBoard (`pip install
        'adaptive_jax[tensorboard]'`). It is opened before the first step, and what is there is kept: a run
        that goes on appends, and where steps are taken again their lines are there twice.
      checkpoints: where and how often to save, `aj.Checkpoints(directory, every=1000)`; None to save
        nothing. The last state is saved as well, and is written when `fit` returns, or raises. What
        callbacks remember is saved beside it, and where the state is one that `restore_checkpoint` gave,
        new ones go on from that; a loop that had been stopped takes no step.

    Returns:
      The last state; and the `History`, a dict of the metrics with a first axis for the steps, in NumPy
      arrays. Metrics whose shape changes from step to step are arrays of objects. Evaluations are beside
      them with a first axis of their own: "eval_step" says after which steps they were.
      `history.stopped_by` is which callback ended the loop.

    Raises:
      TypeError: for what is no step, no batches or no callback, an answer of the callback that is
        neither true, false nor None, and an evaluation that is no number.
      ValueError: for a number of steps that is none, or fewer batches than that; for both steps and epochs;
        for callbacks that disagree; for a folder with checkpoints of later steps; for processes whose
        states or evaluations are not the same.
      FloatingPointError: where a `skip_nonfinite` has stopped: with the step and the arrays.
      OSError: for a log that cannot be written, before the first step.
      ImportError: for a folder for TensorBoard without tensorboardX.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: (params - batch) ** 2)
      >>> state = aj.TrainState.create(jnp.array(0.0), aj.sgd(0.25))
      >>> state, history = aj.fit(state, step, [1.0, 1.0, 1.0])
      >>> print(state.params, history["loss"], history.interrupted)
      0.875 [1.     0.25   0.0625] False

      Three epochs of two batches, with an evaluation after each:

      >>> state, history = aj.fit(state, step, [1.0, 1.0], epochs=3, evaluate=lambda w: (w - 1) ** 2,
      ...                         callback=aj.EarlyStopping(patience=2))
      >>> print(history["eval_step"], history["eval_loss"].round(5))
      [5 7 9] [9.8e-04 6.0e-05 0.0e+00]
    """
    if steps is not None:
        hint = " None is for as many as there are batches."
        steps = whole("steps", steps, 0, hint=hint)
        if epochs is not None:
            raise ValueError(
                f"steps={steps} and epochs={epochs!r} both say how long: give one of them."
            )
    step = checked_step("fit", state, step)
    source = Epochs(batches, epochs)
    callbacks = Callbacks(callback, evaluate is not None)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"checkpoints={checkpoints!r:.200} must be such as aj.Checkpoints(directory, every=1000)."
        )
    done, record, was_used_up = 0, Record(), is_used_up(state)
    are_together = spans_processes(state)
    evaluations = Evaluations(evaluate, evaluate_every, are_together)
    if (names := evaluations.names(state)) is not None:
        callbacks.check_names(names)
    is_first_process = not are_together or jax.process_index() == 0
    with together("fit") if are_together else contextlib.nullcontext():
        facts = (
            {**facts_of(state), "steps": f"{steps}", "epochs": f"{epochs}"} if are_together else {}
        )
        facts |= {"evaluate_every": f"{evaluate_every}", "checkpoints": f"{checkpoints}"}
        facts |= {"callback": ", ".join(named(callbacks.that_save))}
        log = Log(log_every, log_to, is_first_process)
    first, stopped_by = 0, ""
    try:
        if are_together:
            check_alike("What is trained", facts)
        if checkpoints is not None or evaluate is not None or log_every is not None:
            first = _number_of_step(state, checkpoints is not None)
        if checkpoints is not None:
            checkpoints.start(first)
            stopped_by = callbacks.restore(checkpoints.memories(first), state)
    except BaseException:
        log.close()
        raise
    interrupts = Interrupts()
    stops, stopped = Stops(interrupts, are_together), Stopped(state)
    peers = Peers(are_together)

    def evaluated() -> str:
        """Evaluates; which callback stops the loop, or nothing."""
        values = evaluations.add(first + done, state)
        log.add(first + done, values, is_evaluation=True)
        log.write()
        return callbacks.after_evaluation(state, values)

    def save(checkpoints: Checkpoints) -> None:
        stopped.after_last(state)  # To save is to wait.
        checkpoints.save(state, callbacks=callbacks.that_save)

    with peers, log:
        try:
            is_to_save = False
            with progress_bar(progress, steps) as bar, interrupts:
                log.print = bar.write
                while not stopped_by and (steps is None or done < steps) and not stops.after_step():
                    peers.check()
                    batch = source.next()
                    if batch is END:
                        if steps is not None:
                            raise ValueError(
                                f"the batches ended after {done} of {steps} steps: give an iterator "
                                "that goes on, or steps=None."
                            )
                        is_due = evaluate_every is None and evaluations.is_missing(first + done)
                        stopped_by = evaluated() if is_due and done else ""
                        if stopped_by or not source.go_on():
                            break
                        continue
                    if checkpoints is not None and is_to_save:
                        save(checkpoints)
                        is_to_save = False
                    interrupts.in_step = True
                    peers.started = done + 1
                    state, metrics = step(state, batch)
                    done += 1
                    has_news = record.add(metrics)
                    interrupts.leave_step()
                    if done == 1:
                        log.start(first + 1)
                        evaluations.check_names(metrics)
                    log.add(first + done, metrics)
                    log.write()
                    if has_news:
                        bar.set_postfix_str(record.loss(), refresh=False)
                    bar.update()
                    stopped.after_step(done, state)
                    stopped_by = callbacks.after_step(state, metrics)
                    if evaluations.is_due(first + done):
                        stopped_by = "; ".join(filter(None, [stopped_by, evaluated()]))
                    if checkpoints is not None and checkpoints.is_due(first + done):
                        # Not before the evaluation at the end of an epoch, or of all: the next batch
                        # shows whether there is one.
                        is_to_save = evaluations.is_missing(first + done)
                        if not is_to_save:
                            save(checkpoints)
                is_whole = done > 0 and not stopped_by and not stops.stopped
                if is_whole and evaluations.is_missing(first + done):
                    stopped_by = evaluated()
                peers.end(done)
                jax.block_until_ready(state)  # An error that comes late is one of this loop still.
                if not stops.stopped:  # Who presses Ctrl-C has what was reached.
                    stopped.after_last(state)
                if checkpoints is not None:
                    if not checkpoints.has(_number_of_step(state)):
                        checkpoints.save(state, callbacks=callbacks.that_save)
                    checkpoints.close()
                history = record.history()
                evaluations.add_to(history)
                log.write(wait=True)
                log.close()  # What it cannot write is an error of this loop still.
        except BaseException as error:
            of_others = peers.fail(error)
            _bring_along(
                of_others or error,
                state,
                record,
                evaluations,
                done,
                interrupts,
                was_used_up,
                checkpoints,
                callbacks,
                stopped,
            )
            if of_others is not None:
                raise of_others from error
            raise
    history.interrupted = stops.stopped or interrupts.count > 0
    history.stopped_by = stopped_by
    return state, history


def _bring_along(
    error: BaseException,
    state: Any,
    record: Record,
    evaluations: Evaluations,
    done: int,
    interrupts: Interrupts,
    was_used_up: bool,
    checkpoints: Checkpoints | None,
    callbacks: Callbacks,
    stopped: Stopped,
) -> None:
    """Gives an error the state that was reached after so many steps, if it is not lost, and the history.

    The state is saved, unless that may hang, or it could not go on.

    was_used_up: whether the state that came in was no state any more.
    """
    # Who presses Ctrl-C twice does not wait for a device that hangs, nor for another process.
    may_hang = isinstance(error, (KeyboardInterrupt, PeerError))
    wait = not may_hang or has_arrived(record.metrics(), 1.0)
    lost = is_lost(state, wait)
    history = record.rescued(wait)
    evaluations.rescue(history, wait)
    # Not by assignment, which an exception that is a frozen dataclass refuses.
    vars(error).update(state=None if lost else state, history=history)
    history.interrupted = interrupts.count > 0
    where = ""
    is_alone = jax.process_count() == 1 and isinstance(error, (Exception, SystemExit))
    if checkpoints is not None and is_alone:
        is_good = done > 0 and not lost and not stopped.is_so(state)
        where = _saved(checkpoints, state if is_good else None, callbacks)
    note = (
        _lost_note(done)
        if lost
        else f"The state that was reached, after {done} steps, is error.state{where}; the "
        "metrics are in error.history."
    )
    if not (lost and was_used_up):
        with contextlib.suppress(AttributeError):
            error.add_note(note)


def _saved(checkpoints: Checkpoints, state: Any, callbacks: Callbacks) -> str:
    """Writes what is on its way to the disk, and the state if there is one. Where that is, in words."""
    # The error that is there already says more than one of the disk would.
    with contextlib.suppress(Exception):
        is_new = state is not None and not checkpoints.has(_number_of_step(state))
        if is_new:
            checkpoints.save(state, callbacks=callbacks.that_save)
        checkpoints.close()
        return f", and in {saved.last()}" if is_new else ""
    return ""


def _number_of_step(state: Any, is_needed: bool = True) -> int:
    """The number of the state's step, by which all is counted; 0 of a state that does not know it."""
    step: Any = getattr(state, "step", [0])
    if np.ndim(step):
        if is_needed:
            raise ValueError("checkpoints need a state that knows its step, such as a TrainState.")
        return 0
    return 0 if is_used_up(step) else int(step)


def _lost_note(done: int) -> str:
    last = saved.last()
    where = "the last checkpoint that you saved" if last is None else f"the last checkpoint, {last}"
    return (
        f"The state is lost, after {done} steps at most: a step failed that had taken its arrays over. "
        f"error.state is None; error.history has the metrics that there are. Go on from {where}."
    )

"""The loop around a training step."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from .._core.arguments import whole
from . import checkpoint as saved
from .agreement import check_alike, facts_of, spans_processes, together
from .arrays import has_arrived, is_lost, is_used_up
from .checkpoint import Checkpoints
from .history import History, Record
from .interrupts import Interrupts
from .peers import PeerError, Peers
from .processes import Stops
from .progress import progress_bar
from .returned import outlined, shown
from .state import TrainState
from .step import TrainStep


def fit(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    batches: Iterable[Any],
    *,
    steps: int | None = None,
    callback: Callable[[TrainState, dict[str, Any]], Any] | None = None,
    progress: bool | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainState, History]:
    """The loop: one training step per batch, with a progress bar and a history.

    The device is never waited for: metrics are fetched many steps at a time, some steps later.

    Ctrl-C, or an interrupted notebook cell, ends the loop after the step at hand, and what was reached
    is returned (unless the process ignores it, or has a handler of its own for it);
    `history.interrupted` tells a script with more to do. A second one interrupts at once, or after the
    step at hand if there is one, a third one always.
    Whatever ends the loop otherwise, an error in the batches or the callback, `sys.exit` or that second
    Ctrl-C, has the state that was reached as its attribute `state`, and its history as `history`: the
    state that came in is used up.
    A failure within a step, as where memory is out, leaves no state: `state` is None, and a note says
    which checkpoint was the last one.

    Where several processes train together (an array of the state is on devices of several), Ctrl-C in
    one of them, or a cluster that takes a machine away, ends the loop of all after the same step. States
    that are not the same in all processes are refused before the first step. An error in one process, or
    fewer batches than another has, ends all of them within seconds: those that wait for it in vain print
    it and exit with 1, since a process that waits in a collective cannot be reached otherwise.

    Args:
      state: the state to start from. Its arrays are written over.
      step: what `train_step` returns, or any function like it.
      batches: one batch per step, as long as they last.
      steps: after how many steps to stop; None for as many as there are batches.
      callback: called after each step with the new state and the metrics, both on the device: to
        evaluate, at `state.eval_params()`, to save, to print. It stops the loop by returning True, one
        of NumPy or JAX as well (which is waited for); it goes on with False or None. It must not keep
        the state, which the next step writes over, and cannot change it: that is done by a step around
        the step.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.
      checkpoints: where and how often to save, `aj.Checkpoints(directory, every=1000)`; None to save
        nothing. The last state is saved as well, and is written when `fit` returns.

    Returns:
      The last state; and the `History`, a dict of the metrics with a first axis for the steps, in NumPy
      arrays. Metrics whose shape changes from step to step are arrays of objects.

    Raises:
      TypeError: for what is no step, no batches or no callback, and an answer of the callback that is
        neither true, false nor None.
      ValueError: for a number of steps that is none, or fewer batches than that; for a folder with
        checkpoints of later steps; for processes whose states are not the same.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: (params - batch) ** 2)
      >>> state = aj.TrainState.create(jnp.array(0.0), aj.sgd(0.25))
      >>> state, history = aj.fit(state, step, [1.0, 1.0, 1.0])
      >>> print(state.params, history["loss"], history.interrupted)
      0.875 [1.     0.25   0.0625] False
    """
    if steps is not None:
        hint = " None is for as many as there are batches."
        steps = whole("steps", steps, 0, hint=hint)
    step = _as_step(state, step)
    iterator = _iterator(batches)
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback={callback!r:.200} must be a function of the state and the metrics."
        )
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"checkpoints={checkpoints!r:.200} must be such as aj.Checkpoints(directory, every=1000)."
        )
    done, record, was_used_up = 0, Record(), is_used_up(state)
    are_together = spans_processes(state)
    if are_together:
        with together("fit"):
            facts = {**facts_of(state), "steps": f"{steps}", "checkpoints": f"{checkpoints}"}
        check_alike("What is trained", facts)
    first = 0
    if checkpoints is not None:
        first = _number_of_step(state)
        checkpoints.start(first)
    interrupts = Interrupts()
    stops = Stops(interrupts, are_together)
    peers = Peers(are_together)
    with peers:
        try:
            with progress_bar(progress, steps) as bar, interrupts:
                while (steps is None or done < steps) and not stops.after_step():
                    peers.check()
                    batch = next(iterator, _END)
                    if batch is _END:
                        if steps is not None:
                            raise ValueError(
                                f"the batches ended after {done} of {steps} steps: give an iterator "
                                "that goes on, or steps=None."
                            )
                        break
                    interrupts.in_step = True
                    peers.started = done + 1
                    state, metrics = step(state, batch)
                    done += 1
                    has_news = record.add(metrics)
                    interrupts.leave_step()
                    if has_news:
                        bar.set_postfix_str(record.loss(), refresh=False)
                    bar.update()
                    is_last = callback is not None and _stops(callback(state, metrics))
                    if checkpoints is not None and checkpoints.is_due(first + done):
                        checkpoints.save(state)
                    if is_last:
                        break
                peers.end(done)
                jax.block_until_ready(state)  # An error that comes late is one of this loop still.
                if checkpoints is not None:
                    if not checkpoints.has(_number_of_step(state)):
                        checkpoints.save(state)
                    checkpoints.close()
                history = record.history()
        except BaseException as error:
            of_others = peers.fail(error)
            _bring_along(
                of_others or error, state, record, done, interrupts, was_used_up, checkpoints
            )
            if of_others is not None:
                raise of_others from error
            raise
    history.interrupted = stops.stopped or interrupts.count > 0
    return state, history


def _bring_along(
    error: BaseException,
    state: Any,
    record: Record,
    done: int,
    interrupts: Interrupts,
    was_used_up: bool,
    checkpoints: Checkpoints | None,
) -> None:
    """Gives an error the state that was reached after so many steps, if it is not lost, and the history.

    was_used_up: whether the state that came in was no state any more.
    """
    if checkpoints is not None and isinstance(error, Exception) and jax.process_count() == 1:
        with contextlib.suppress(Exception):  # What is being saved may be the last one.
            checkpoints.close()
    # Who presses Ctrl-C twice does not wait for a device that hangs, nor for another process.
    may_hang = isinstance(error, (KeyboardInterrupt, PeerError))
    wait = not may_hang or has_arrived(record.metrics(), 1.0)
    lost = is_lost(state, wait)
    history = record.rescued(wait)
    # Not by assignment, which an exception that is a frozen dataclass refuses.
    vars(error).update(state=None if lost else state, history=history)
    history.interrupted = interrupts.count > 0
    note = (
        _lost_note(done)
        if lost
        else f"The state that was reached, after {done} steps, is error.state; the metrics are in "
        "error.history."
    )
    if not (lost and was_used_up):
        with contextlib.suppress(AttributeError):
            error.add_note(note)


_END = object()


def _as_step(state: Any, step: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step of `fit`; one that `train_step` did not make is looked at when it is called."""
    if isinstance(state, TrainStep) or isinstance(step, TrainState):
        raise TypeError(
            f"state={state!r:.80} and step={step!r:.80} are in the wrong order: call "
            "fit(state, step, batches)."
        )
    if not callable(step):
        raise TypeError(
            f"step={step!r:.200} must be a function of a state and a batch, such as aj.train_step "
            "returns: call fit(state, step, batches)."
        )
    if isinstance(step, TrainStep):
        return step
    name = getattr(step, "__name__", f"{step!r:.80}")
    advice = (
        "It must return the new state and a dict of metrics. If it is a loss function, make a step of "
        "it: aj.train_step(loss_fn)."
    )

    def checked(old: Any, batch: Any) -> tuple[Any, Any]:
        try:
            result: Any = step(old, batch)
        except Exception as error:
            # As Python and JAX name a type, where a loss takes the state for the parameters.
            if not re.search(r"'(adaptive_jax\.[\w.]*)?TrainState'", str(error)):
                raise
            raise TypeError(
                f"step={name} was called with the state and a batch, and failed: "
                f"{type(error).__name__}: {error}. {advice}"
            ) from error
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        if not is_pair or (isinstance(old, TrainState) and not isinstance(result[0], TrainState)):
            raise TypeError(f"step={name} returned {outlined(result)}. {advice}")
        return result

    return checked


def _number_of_step(state: Any) -> int:
    """The number of the state's step, by which checkpoints are named."""
    if np.ndim(getattr(state, "step", [0])):
        raise ValueError("checkpoints need a state that knows its step, such as a TrainState.")
    return int(state.step)


def _iterator(batches: Any) -> Any:
    if isinstance(batches, (Mapping, str)):
        raise TypeError(
            f"batches is {shown(batches)}, which is one batch: give a list of them, or a generator."
        )
    try:
        return iter(batches)
    except TypeError:
        raise TypeError(
            f"batches={batches!r:.200} must be an iterable with one batch for each step: a list, or a "
            "generator."
        ) from None


def _stops(answer: Any) -> bool:
    """Whether what a callback returned ends the loop."""
    if answer is None or answer is True or answer is False:
        return bool(answer)
    is_array = isinstance(answer, (np.bool_, np.ndarray, jax.Array))
    if is_array and answer.shape == () and answer.dtype == np.bool_:
        return bool(answer)
    if any(isinstance(each, TrainState) for each in jax.tree.leaves(answer, is_leaf=_is_state)):
        raise TypeError(
            "the callback returned a TrainState: it cannot change the state, and returns True to stop "
            "the loop. To change the state after a step, give fit a step around the step: "
            "def changing(state, batch): state, metrics = step(state, batch); "
            "return change(state), metrics."
        )
    raise TypeError(
        f"the callback returned {outlined(answer)}: it must return True to stop the loop, and False or "
        "None to go on."
    )


def _is_state(x: Any) -> bool:
    return isinstance(x, TrainState)


def _lost_note(done: int) -> str:
    last = saved.last()
    where = "the last checkpoint that you saved" if last is None else f"the last checkpoint, {last}"
    return (
        f"The state is lost, after {done} steps at most: a step failed that had taken its arrays over. "
        f"error.state is None; error.history has the metrics that there are. Go on from {where}."
    )

"""What a loop does with all of its callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .callbacks import Callback, EarlyStopping, Watching
from .checkpoint.memories import named
from .returned import outlined
from .state import TrainState


class Callbacks:
    """All that a loop calls, in their order. Each is called; any of them stops the loop."""

    def __init__(self, callback: Any, is_evaluated: bool) -> None:
        every = callback if isinstance(callback, (list, tuple)) else [callback]
        self._every = [each for each in every if each is not None]
        for each in self._every:
            if not isinstance(each, Callback) and not callable(each):
                raise TypeError(
                    f"callback={each!r:.200} must be a function of the state and the metrics, an "
                    "aj.Callback such as aj.EarlyStopping, or a list of these."
                )
            if isinstance(each, type):
                raise TypeError(
                    f"callback={each!r:.200} is a class: give one of it, {each.__name__}(…)."
                )
        self._check(is_evaluated)

    def _check(self, is_evaluated: bool) -> None:
        """Raises a ValueError for those that cannot do what they are for, or disagree."""
        seen: dict[str, Watching] = {}
        for each in self._every:
            if sum(other is each for other in self._every) > 1:
                raise ValueError(f"{each!r:.200} is there twice in callback: give it once.")
            if not isinstance(each, Watching):
                continue
            if not is_evaluated:
                raise ValueError(
                    f"{each!r} looks at evaluations, and there are none: give evaluate=, a function of "
                    "the parameters."
                )
            other = seen.setdefault(each.name, each)
            if other.maximize != each.maximize:
                raise ValueError(
                    f"{other!r} and {each!r} disagree whether {each.name} is good where it is large: "
                    "give both the same maximize."
                )
            if any(type(one) is type(each) and one.name == each.name for one in self._before(each)):
                raise ValueError(
                    f"callback has {type(each).__name__} of {each.name!r} twice: one of them is enough."
                )

    def _before(self, callback: Any) -> Sequence[Any]:
        place = next(i for i, each in enumerate(self._every) if each is callback)
        return [each for each in self._every[:place] if isinstance(each, Watching)]

    def check_names(self, names: Iterable[str]) -> None:
        """Raises a ValueError for one that looks at another number than there will be."""
        for each in self._every:
            if isinstance(each, Watching):
                each.check_name(names)

    @property
    def that_save(self) -> list[Callback]:
        """Those whose memory a checkpoint keeps."""
        return [each for each in self._every if isinstance(each, Callback)]

    def restore(self, memories: Mapping[str, Any], state: Any) -> str:
        """Gives back what a checkpoint kept. Who had stopped the loop by then, or nothing."""
        return _stopped(
            [
                (each, each.restore(memories[name], state))
                for name, each in named(self.that_save).items()
                if name in memories
            ]
        )

    def after_step(self, state: Any, metrics: Any) -> str:
        """Who stops the loop, or nothing."""
        answers = [
            (
                each,
                each.after_step(state, metrics)
                if isinstance(each, Callback)
                else each(state, metrics),
            )
            for each in self._every
        ]
        return _stopped(answers)

    def after_evaluation(self, state: Any, values: dict[str, Any]) -> str:
        """Who stops the loop, or nothing."""
        return _stopped(
            [
                (each, each.after_evaluation(state, values))
                for each in self._every
                if isinstance(each, Callback)
            ]
        )


def _stopped(answers: Sequence[tuple[Any, Any]]) -> str:
    texts = []
    for each, answer in answers:
        if isinstance(each, EarlyStopping) and isinstance(answer, str):
            texts.append(f"{each!r}: {answer}")
        elif _stops(answer):
            is_own = isinstance(each, Callback)
            texts.append(f"{each!r:.200}" if is_own else getattr(each, "__name__", f"{each!r:.80}"))
    return "; ".join(texts)


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

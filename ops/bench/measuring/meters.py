"""Where a process's time goes: seconds of calls, by stage."""

from __future__ import annotations

import time
import types
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Meters:
    """Seconds by stage; a stage inside another counts for itself alone."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """clock: seconds; the calling thread's CPU time, unless another is given."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._inner = 0.0   # of stages that ended inside the current one

    def measured(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted."""
        def call(*arguments: Any, **named: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            began = self._clock()
            try:
                return function(*arguments, **named)
            finally:
                spent = self._clock() - began
                self.seconds[stage] += spent - self._inner
                self._inner = outer + spent
        return call

    @types.coroutine
    def stepped(self, stage: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same coroutine, its own steps counted and not what others do while it waits."""
        step = self.measured(stage, coroutine.send)
        try:
            while True:
                yield step(None)
        except StopIteration as end:
            return end.value

    @contextmanager
    def over(self, places: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Within the block these calls are measured. places: (owner, attribute, stage); one that is not there is left out."""
        before = [(owner, name, vars(owner).get(name), stage) for owner, name, stage in places if hasattr(owner, name)]
        for owner, name, _, stage in before:
            setattr(owner, name, self.measured(stage, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, was, _ in reversed(before):
                if was is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, was)

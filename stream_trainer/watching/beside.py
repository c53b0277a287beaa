"""One thread beside the learner's: what need not be done between two batches is done there, in the order in which it came.

Whoever gives work waits when some of it waits already: nothing is lost, and what waits is bounded. What a checkpoint holds of
such work is that of its own moment after `settle`. An error there ends the process, as one in the learner's thread does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

WAITING = 4       # pieces of work, of a window each: a few MB

Work = Callable[[], None]


class Beside:
    """Does pieces of work one after the other. For one thread that gives them."""

    def __init__(self, crash: Callable[[BaseException], object]) -> None:
        """crash: is called with what went wrong, on the thread, and is to end the process."""
        self._crash = crash
        self._queue: queue.Queue[Work | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="beside", daemon=True)
        self._thread.start()

    def give(self, work: Work) -> None:
        """Do it, soon. Waits where WAITING pieces wait."""
        self._queue.put(work)

    def settle(self) -> None:
        """Returns when all is done that was given."""
        self._queue.join()

    def close(self) -> None:
        """Do what was given, and end."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 whatever it is, ending loses nothing
                self._crash(error)
            finally:
                self._queue.task_done()
        self._queue.task_done()

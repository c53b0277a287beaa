"""What goes on beside a measurement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def until_done(work: Callable[[threading.Event], object]) -> Iterator[None]:
    """Does it meanwhile, on a thread of its own. work: is to return once the event is set."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def every(seconds: float, work: Callable[[], object]) -> Iterator[None]:
    """Does it every so many seconds meanwhile, on a thread of its own."""
    def go_on(done: threading.Event) -> None:
        while not done.wait(seconds):
            work()

    with until_done(go_on):
        yield

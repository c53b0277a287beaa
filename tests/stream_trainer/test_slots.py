"""A worker's name: its own while it lives, free when it dies, however that is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from stream_trainer.slots import take_slot


def test_a_name_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    """Two workers have two names; the first one's successor takes the first one's."""
    mine = take_slot(tmp_path, "joiner")
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, take_slot(tmp_path, "joiner").encode())
        signal.pause()
    theirs = os.read(ready, 100).decode()
    assert theirs != mine
    assert take_slot(tmp_path, "joiner") not in (mine, theirs)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert take_slot(tmp_path, "joiner") == theirs
    os.close(ready)
    os.close(told)


def test_kinds_do_not_share_names(tmp_path: Path) -> None:
    """A trainer does not take a joiner's place."""
    assert take_slot(tmp_path, "joiner") != take_slot(tmp_path, "trainer")

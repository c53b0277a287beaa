"""Where settings come from, and which source wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.settings import broker_is_ours, load
from schemas.errors import ConfigError


def _file(folder: Path, text: str = "[join]\nwindow_s = 3\nlateness_s = 3\ncommit_every_s = 3\n") -> Path:
    (folder / "freshet.toml").write_text(text)
    return folder / "freshet.toml"


def test_flags_beat_variables_beat_the_file_beats_defaults(tmp_path):
    """Each source sets one key more than the next; the origin of each value is told."""
    file = _file(tmp_path)
    environ = {"FRESHET_JOIN_WINDOW_S": "4", "FRESHET_JOIN_LATENESS_S": "4", "PATH": "/bin"}
    loaded = load(None, ["join.window_s=5"], environ, tmp_path)
    join = loaded.settings.join
    assert (join.window_s, join.lateness_s, join.commit_every_s, join.mode) == (5, 4, 3, "eager")
    assert [loaded.origins[f"join.{key}"] for key in ("window_s", "lateness_s", "commit_every_s", "mode")] == [
        "--set", "environment", str(file), "default",
    ]


def test_a_file_that_was_named_must_exist(tmp_path):
    """By --config or FRESHET_CONFIG; freshet.toml itself may be absent."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml", [], {}, tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(None, [], {"FRESHET_CONFIG": str(tmp_path / "nowhere.toml")}, tmp_path)
    assert load(None, [], {}, tmp_path).file is None


@pytest.mark.parametrize(
    ("text", "flag", "environ", "told"),
    [
        ("[join\n", "", {}, r"freshet\.toml is not TOML"),
        ("[join]\nwindow = 3\n", "", {}, r"freshet\.toml: no such setting: join\.window .*join\.window_s"),
        ("", "join.window_s", {}, r"--set join\.window_s: must be section\.key=value"),
        ("", "join.window_s=soon", {}, r"join\.window_s='soon' \(--set\): must be a number"),
        ("", "join.mode=later", {}, r"join\.mode.*eager, wait"),
        ("", "kafka.bootstrap=here", {}, r"kafka\.bootstrap='here': must be host:port"),
        ("", "", {"FRESHET_JOIN_WINDOWS": "3"}, r"FRESHET_JOIN_WINDOWS.*FRESHET_JOIN_WINDOW_S"),
        ("", "", {"FRESHET_KAFKA": "a:1", "FRESHET_KAFKA_BOOTSTRAP": "b:1"}, r"drop one"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, flag, environ, told):
    """The source, the key, what it was and what it may be."""
    _file(tmp_path, text)
    with pytest.raises(ConfigError, match=told):
        load(None, [flag] if flag else [], environ, tmp_path)


def test_a_child_process_gets_the_same_settings(tmp_path):
    """File, variables and flags reach it through its environment alone."""
    file = _file(tmp_path)
    environ = {"FRESHET_KAFKA": "a:1", "FRESHET_JOIN_LATENESS_S": "4"}
    flags = ["kafka.bootstrap=b:2", "model.hidden=20-10", "score.strict=true"]
    loaded = load(file, flags, environ)
    assert load(None, [], loaded.child_environment(environ), tmp_path / "elsewhere").settings == loaded.settings


@pytest.mark.parametrize(
    ("flag", "environ", "ours"),
    [
        ("", {}, True),
        ("kafka.bootstrap=127.0.0.1:9192", {}, True),                  # our own, on another port
        ("", {"FRESHET_KAFKA_BOOTSTRAP": "localhost:9192"}, True),
        ("", {"FRESHET_KAFKA": "127.0.0.1:9092"}, False),              # "it runs already"
        ("", {"FRESHET_KAFKA": ""}, True),
        ("kafka.bootstrap=kafka.example:9092", {}, False),
        ("kafka.bootstrap=127.0.0.1:1,127.0.0.1:2", {}, False),
    ],
)
def test_a_broker_of_our_own_is_a_port_of_this_machine(tmp_path, flag, environ, ours):
    """FRESHET_KAFKA, several addresses or another machine mean: somebody else's."""
    assert broker_is_ours(load(None, [flag] if flag else [], environ, tmp_path), environ) is ours


@pytest.mark.parametrize(("text", "start_us"), [
    ("earliest", None), ("latest", None), ("2026-11-20T10:00:00Z", 1_795_168_800_000_000),
    ("2026-11-20T11:00:00.25+01:00", 1_795_168_800_250_000), ("1795168800.5", 1_795_168_800_500_000),
])
def test_where_a_stream_starts_is_a_word_or_a_time(tmp_path, text, start_us):
    """ISO 8601 with a zone, or seconds since 1970; in the file as TOML's own time too."""
    assert load(None, [f"learn.start_at={text}"], {}, tmp_path).settings.learn.start_us == start_us
    if "T" in text:
        assert load(_file(tmp_path, f"[learn]\nstart_at = {text}\n"), [], {}, tmp_path).settings.learn.start_us == start_us


@pytest.mark.parametrize("text", ["", "first", "2026-11-20T10:00:00", "2026-11-20", "0", "-5", "nan", "1795168800000"])
def test_what_is_no_start_is_refused(tmp_path, text):
    """A time without a zone means another moment elsewhere; milliseconds would mean the year 58,856."""
    with pytest.raises(ConfigError, match=r"learn\.start_at=.*earliest, latest, or a time like"):
        load(None, [f"learn.start_at={text}"], {}, tmp_path)

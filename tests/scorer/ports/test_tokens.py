"""Bearer tokens: who is let in, who is told what, and what stands in a file."""

from __future__ import annotations

import json

import pytest

from ops.running.doctor import listing
from ops.settings import load
from schemas.errors import ConfigError
from scorer.ports.tokens import Tokens, read_token, read_tokens

SCORING, OPERATOR = "s" * 32, "o" * 32


def test_a_token_is_good_for_its_role_alone():
    """The right one passes; the other role's, a wrong one and none are told apart, and what to send."""
    tokens = Tokens([SCORING, "another-token-16"], [OPERATOR])
    assert tokens.refusal(f"Bearer {SCORING}", "scoring") is None
    assert tokens.refusal("bearer another-token-16", "scoring") is None  # RFC 7235: the scheme's case does not matter
    assert tokens.refusal(f"Bearer {OPERATOR}", "operator") is None
    swapped = tokens.refusal(f"Bearer {SCORING}", "operator")
    assert swapped is not None
    assert swapped.known
    assert "score.operator_tokens" in swapped.text
    wrong = ("", SCORING, f"Basic {SCORING}", f"Bearer {SCORING}x", f"Bearer {SCORING[:-1]}", "Bearer ", "Bearer é")
    for header in (None, *wrong):
        refusal = tokens.refusal(header, "scoring")
        assert refusal is not None
        assert not refusal.known
        assert "send 'authorization: Bearer TOKEN'" in refusal.text
        assert SCORING not in refusal.text


def test_a_role_without_tokens_asks_for_none():
    """Either may have some while the other has none."""
    tokens = Tokens(operator=[OPERATOR])
    assert tokens.refusal(None, "scoring") is None
    assert tokens.refusal(None, "operator") is not None


def test_one_token_a_line(make_settings, tmp_path):
    """Blank lines and spaces round a token do not matter; the first line is the one that is sent."""
    file = tmp_path / "tokens"
    file.write_text(f"\n  {SCORING} \n\nanother-token-16\n")
    score = make_settings(**{"score.tokens_file": str(file), "score.caller_token_file": str(file)}).score
    tokens = read_tokens(score)
    assert tokens.refusal(f"Bearer {SCORING}", "scoring") is None
    assert tokens.refusal("Bearer another-token-16", "scoring") is None
    assert read_token(score) == SCORING
    given = make_settings(**{"score.operator_tokens": f"{OPERATOR} {SCORING}"}).score
    assert read_tokens(given).refusal(f"Bearer {SCORING}", "operator") is None
    assert OPERATOR not in repr(given)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"No such file or directory; name a file that this user may read, with one token a line"),
        (b"\n \n", "no token in it; put one a line"),
        (b"tooshort\n", "line 1: a token has at least 16 visible ASCII characters.*openssl rand -hex 32"),
        (b"sixteen and a few with spaces\n", "no space"),
        (b"\xff" * 40, "not text of ASCII characters"),
        ("a folder", "Is a directory; name a file that this user may read"),
    ],
)
def test_a_file_that_has_no_tokens_is_refused(make_settings, tmp_path, text, told):
    """With the setting, the file, and what to do; what stood in it is not repeated."""
    file = tmp_path / "tokens"
    if text == "a folder":
        file.mkdir()
    elif text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=told) as refused:
        read_tokens(make_settings(**{"score.tokens_file": str(file)}).score)
    assert f"score.tokens_file={file}" in str(refused.value)
    assert "tooshort" not in str(refused.value)


def test_a_token_of_both_roles_is_refused():
    """Then they would not be apart."""
    with pytest.raises(ConfigError, match="have a token in common"):
        Tokens([SCORING], [SCORING])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"score.host": "0.0.0.0", "score.tokens": SCORING}, r"score\.host=0\.0\.0\.0 with tokens and without TLS"),
        ({"score.host": "", "score.tokens_file": "t"}, r"score\.host= with tokens and without TLS"),
        ({"score.host": "::", "score.tokens": SCORING}, "without TLS.*score.tls_certificate_file"),
        ({"score.operator_host": "10.0.0.1", "score.operator_tokens": OPERATOR}, r"score\.operator_host=10\.0\.0\.1 with"),
        ({"score.tokens": SCORING, "score.tokens_file": "t"}, r"score\.tokens and score\.tokens_file are both set"),
        ({"score.tls_client_ca_file": "ca.pem"}, r"score\.tls_client_ca_file without score\.tls_certificate_file"),
        ({"score.tls_key_file": "key.pem"}, r"score\.tls_key_file without score\.tls_certificate_file"),
        ({"score.caller_key_file": "key.pem"}, "a key needs its certificate"),
        ({"score.metrics_port": 70000}, r"score\.metrics_port=70000: from 0 to 65535"),
    ],
)
def test_settings_that_would_give_tokens_away_are_refused(make_settings, values, told):
    """A token in plain text leaves this machine at no price; what makes no sense is refused too."""
    with pytest.raises(ConfigError, match=told):
        make_settings(**values)


def test_a_token_is_shown_nowhere(tmp_path):
    """Not by `freshet doctor`, not in a repr; and a flag, which everybody on the machine can read, is refused."""
    environ = {
        "FRESHET_SCORE_TOKENS": SCORING, "FRESHET_SCORE_OPERATOR_TOKENS": OPERATOR, "FRESHET_SCORE_CALLER_TOKEN": SCORING,
    }
    loaded = load(None, [], environ, tmp_path)
    assert read_token(loaded.settings.score) == SCORING
    shown = repr(loaded.settings) + json.dumps(listing(loaded))
    assert SCORING not in shown
    assert OPERATOR not in shown
    assert shown.count("(hidden)") == 3
    with pytest.raises(ConfigError, match=r"could read it; use FRESHET_SCORE_TOKENS or score\.tokens_file"):
        load(None, [f"score.tokens={SCORING}"], {}, tmp_path)


def test_tokens_without_tls_on_this_machine_alone(make_settings):
    """Loopback, by number or name; and anywhere with TLS."""
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        make_settings(**{"score.host": host, "score.tokens": SCORING})
    make_settings(**{"score.host": "0.0.0.0", "score.tokens": SCORING, "score.tls_certificate_file": "c.pem"})

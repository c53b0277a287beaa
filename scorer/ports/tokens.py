"""Who may ask what: bearer tokens for scoring and, apart from them, for operators."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.config import ScoreConfig
from schemas.errors import ConfigError

Role = Literal["scoring", "operator"]
SETTINGS: dict[Role, str] = {"scoring": "score.tokens", "operator": "score.operator_tokens"}
BEARER = "Bearer "
LEAST = 16  # characters: 62^16 takes a guesser for ever


@dataclass(frozen=True, slots=True)
class Refusal:
    """known: it is a token, but of the other role."""

    known: bool
    text: str


class Tokens:
    """The tokens of both roles. A role without any asks for none."""

    def __init__(self, scoring: Iterable[str] = (), operator: Iterable[str] = ()) -> None:
        # Kept and looked up by a digest with a key that dies with this process: how long a look-up takes tells nothing about
        # any token, and it takes as long for a thousand as for one.
        self._secret = secrets.token_bytes(32)
        self._roles: dict[bytes, Role] = {}
        self.asked: dict[Role, bool] = {}
        given: tuple[tuple[Role, Iterable[str]], ...] = (("scoring", scoring), ("operator", operator))
        for role, its in given:
            digests = {self._digest(token) for token in its}
            if digests & self._roles.keys():
                raise ConfigError(f"{SETTINGS['scoring']} and {SETTINGS['operator']} have a token in common: each its own")
            self._roles |= dict.fromkeys(digests, role)
            self.asked[role] = bool(digests)

    def refusal(self, header: str | None, role: Role) -> Refusal | None:
        """None if it may. header: value of `authorization`, as it came; None = there was none."""
        if not self.asked[role]:
            return None
        what = f"'authorization: {BEARER}TOKEN' with one of the tokens of {SETTINGS[role]} of this scorer"
        if header is None:
            return Refusal(False, f"no token came: send {what}")
        if header[: len(BEARER)].lower() != BEARER.lower():
            return Refusal(False, f"no bearer token came: send {what}")
        found = self._roles.get(self._digest(header[len(BEARER) :]))
        if found == role:
            return None
        if found is None:
            return Refusal(False, f"the token that came is not known here: send {what}")
        return Refusal(True, f"the token that came is of {SETTINGS[found]}, which this is not open to: send {what}")

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32, key=self._secret).digest()


def read_tokens(score: ScoreConfig) -> Tokens:
    """Those of score.tokens, score.operator_tokens and their files. Raises ConfigError."""
    return Tokens(
        listed("score.tokens", score.tokens, score.tokens_file),
        listed("score.operator_tokens", score.operator_tokens, score.operator_tokens_file),
    )


def read_token(score: ScoreConfig) -> str | None:
    """The one that our own callers send. Raises ConfigError."""
    return next(iter(listed("score.caller_token", score.caller_token, score.caller_token_file)), None)


def listed(setting: str, given: str, file: str) -> list[str]:
    """Tokens of a setting, or of the file that stands in its place. Raises ConfigError, which names no token."""
    if not file:
        return [_checked(setting, token) for token in given.split()]
    try:
        lines = Path(file).read_text("ascii").splitlines()
    except OSError as wrong:
        raise ConfigError(
            f"{setting}_file={file}: {wrong.strerror}; name a file that this user may read, with one token a line"
        ) from wrong
    except UnicodeDecodeError as wrong:
        raise ConfigError(f"{setting}_file={file}: not text of ASCII characters; it needs one token a line") from wrong
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    found = [_checked(f"{setting}_file={file}, line {number}", token) for number, token in numbered]
    if not found:
        raise ConfigError(f"{setting}_file={file}: no token in it; put one a line, or leave the setting out")
    return found


def _checked(where: str, token: str) -> str:
    if len(token) < LEAST or not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            f"{where}: a token has at least {LEAST} visible ASCII characters and no space; `openssl rand -hex 32` makes one"
        )
    return token

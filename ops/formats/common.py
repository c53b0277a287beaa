"""What the formats share."""

from __future__ import annotations

from schemas.errors import ConfigError

START_US = 1_400_000_000_000_000  # 2014-05-13: where the time of a file without a clock begins


class BadRow(ConfigError):
    """A line that is not in the format. line: from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")
        self.line = line

"""Where Java and Kafka's jars are on this machine, and what to do if they are not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import BrokerError

LEAST_VERSION = 17  # Kafka 4 runs on nothing older (KIP-750)
PROJECT = Path(__file__).resolve().parents[2]
LIBS = PROJECT / "var" / "kafka" / "libs"  # where `make setup` puts Kafka's jars

OTHER_WAYS = "Or use a Kafka of your own: FRESHET_KAFKA=host:port, or `docker compose -f ops/compose.yaml up -d`."


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that can run Kafka."""

    path: str
    version: int


def find_java() -> Java:
    """$JAVA_HOME/bin/java, else the first `java` on PATH. Raises BrokerError if there is none, or it is too old."""
    home = os.environ.get("JAVA_HOME")  # Java's own convention; no setting of ours
    at_home = str(Path(home) / "bin" / "java") if home else None
    path = at_home if at_home and Path(at_home).exists() else shutil.which("java")
    if path is None:
        raise BrokerError(f"Kafka needs Java {LEAST_VERSION} or newer; there is none. `make setup` tries. {OTHER_WAYS}")
    told = subprocess.run([path, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', told.stderr + told.stdout)
    version = int(found.group(1)) if found else 0
    if version < LEAST_VERSION:
        raise BrokerError(f"Kafka needs Java {LEAST_VERSION} or newer; {path} is {version or 'unknown'}. {OTHER_WAYS}")
    return Java(path, version)


def find_libs(libs: Path = LIBS) -> Path:
    """The folder of Kafka's jars. Raises BrokerError if they have not been fetched."""
    if not any(libs.glob("kafka_2.13-*.jar")):
        raise BrokerError(f"Kafka's jars are not in {libs}: run `make setup`. {OTHER_WAYS}")
    return libs

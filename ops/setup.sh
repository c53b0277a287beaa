#!/usr/bin/env bash
# One step of `make setup`: ops/setup.sh venv|packages|project|java|jars|make|browser|promtool. The Makefile knows when which is needed.
# Says in one line what it does and how long it took; everything else goes to var/setup.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOG=var/setup.log
LEAST_JAVA=17 # Kafka 4 runs on nothing older

mkdir -p var

# step TEXT COMMAND…: on a terminal the log's last line runs along while the command does.
step() {
    local text=$1 began=$SECONDS
    shift
    echo "== $text" >>"$LOG"
    printf '%s … ' "$text"
    if [ -t 1 ]; then
        "$@" >>"$LOG" 2>&1 </dev/null &
        local command=$! status=0
        trap 'kill $command 2>/dev/null; exit 130' INT TERM
        while kill -0 $command 2>/dev/null; do
            printf '\r\033[K%s … %d s  %s' "$text" $((SECONDS - began)) "$(tail -n 1 "$LOG" | tr -d '\r' | cut -c 1-60)"
            sleep 0.5
        done
        wait $command || status=$?
        trap - INT TERM
        printf '\r\033[K%s … ' "$text"
    else
        local status=0
        "$@" >>"$LOG" 2>&1 </dev/null || status=$?
    fi
    if [ "$status" != 0 ]; then
        printf 'failed\n'
        tail -n 25 "$LOG" >&2
        printf '\nThe whole log is in %s\n' "$LOG" >&2
        exit 1
    fi
    printf '%d s\n' $((SECONDS - began))
}

# as_root COMMAND…: false where this user may not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && sudo -n "$@"
    fi
}

may_install() { command -v apt-get >/dev/null && as_root true; }

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# The one command that installs something on this system. Arguments: its name for apt, dnf, pacman, brew.
install_command() {
    if command -v apt-get >/dev/null; then
        echo "sudo apt-get install -y $1"
    elif command -v dnf >/dev/null; then
        echo "sudo dnf install -y $2"
    elif command -v pacman >/dev/null; then
        echo "sudo pacman -S $3"
    elif command -v brew >/dev/null; then
        echo "brew install $4"
    else
        echo "(with your system's package manager) install $1"
    fi
}

# --- Python -----------------------------------------------------------------------------------------------------------

find_python() {
    local name
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

setup_venv() {
    local python
    if ! python=$(find_python); then
        printf 'freshet needs Python 3.11 or newer; this machine has %s. Install one, or name it: make setup PYTHON=/path/to/python3\n' \
            "$(python3 --version 2>/dev/null || echo none)" >&2
        exit 1
    fi
    # Debian keeps the module that makes virtual environments in a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        if may_install; then
            step "installing python3-venv with apt-get (Debian's Python cannot make a virtual environment without it)" \
                apt_install python3-venv
        else
            printf 'Python lacks the module venv. Install it: %s\n' "$(install_command python3-venv python3 python python3)" >&2
            exit 1
        fi
    fi
    step "making the virtual environment .venv with $("$python" --version)" "$python" -m venv .venv
}

setup_packages() {
    step "installing $(grep -c '^[a-z].*==' requirements.lock) packages, each checked against its hash" \
        .venv/bin/python -m pip install --disable-pip-version-check --no-input --require-hashes -r requirements.lock
}

setup_project() {
    step "installing freshet itself, editable" \
        .venv/bin/python -m pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation --editable .
}

# --- Java and Kafka ---------------------------------------------------------------------------------------------------

have_java() {
    local java=java version
    if [ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ]; then java=$JAVA_HOME/bin/java; fi
    version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || return 1
    [ "${version:-0}" -ge $LEAST_JAVA ]
}

have_maven() { [ -e var/kafka/.fetched ] || command -v mvn >/dev/null; }

# maven brings a Java of the system's choice, which may be too old (Ubuntu 22.04: 11): then the first that is not.
install_java() {
    apt_install maven || return 1
    local name
    for name in openjdk-21-jre-headless openjdk-17-jre-headless openjdk-25-jre-headless; do
        if have_java; then return; fi
        apt_install "$name" || true
    done
    have_java
}

setup_java() {
    if have_java && have_maven; then return; fi
    if may_install; then
        step "installing maven, which brings Java, with apt-get (Kafka needs Java $LEAST_JAVA; Maven fetches it)" install_java
        return
    fi
    cat >&2 <<END
Kafka needs Java $LEAST_JAVA or newer, and Maven to be fetched; this machine has not both. Three ways on:
  1. install them:         $(install_command maven maven "maven jre-openjdk-headless" maven)
  2. a Kafka you have:     FRESHET_KAFKA=host:port make run
  3. one in a container:   docker compose -f ops/compose.yaml up -d; FRESHET_KAFKA=127.0.0.1:9092 make run
END
    exit 1
}

# Maven's own repository is put under var/ too, for the time of the fetch: nothing is written elsewhere.
# (`&&`, as `set -e` does not hold in what `step` runs.)
fetch_jars() {
    rm -rf var/kafka/libs &&
        mvn -q -B -f ops/broker/pom.xml -Dmaven.repo.local="$PWD/var/kafka/m2" \
            dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$PWD/var/kafka/libs" &&
        rm -rf var/kafka/m2
}

setup_jars() {
    mkdir -p var/kafka
    local version
    version=$(sed -n '/<artifactId>kafka_2.13</{n;s/.*<version>\(.*\)<.*/\1/p;}' ops/broker/pom.xml)
    step "fetching Apache Kafka $version with Maven" fetch_jars
}

# Debian's browser and its driver, for the tests that press the dashboard's buttons; without them those are skipped.
setup_browser() {
    if command -v chromedriver >/dev/null; then return; fi
    if may_install; then
        (step "installing chromium with apt-get (tests drive the dashboard with it)" apt_install chromium chromium-driver) ||
            echo "no Chromium: the tests that drive the dashboard are skipped"
    fi
}

# Prometheus's own checker of rules, taken out of Debian's package, of which nothing is installed or started; without it the
# tests of ops/alerts are skipped.
fetch_promtool() {
    rm -rf var/promtool && mkdir -p var/promtool &&
        (cd var/promtool && apt-get download -q prometheus && dpkg-deb -x prometheus_*.deb deb && mv deb/usr/bin/promtool . &&
            rm -rf deb prometheus_*.deb)
}

setup_promtool() {
    if command -v promtool >/dev/null || [ -x var/promtool/promtool ]; then return; fi
    if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        (step "fetching promtool with apt-get (it tests the alert rules)" fetch_promtool) ||
            echo "no promtool: the tests of the alert rules are skipped"
    fi
}

setup_make() {
    if may_install; then
        step "installing make with apt-get" apt_install make
    else
        printf 'make is missing: %s\n' "$(install_command make make make make)" >&2
        exit 1
    fi
}

case "${1:-}" in
venv | packages | project | java | jars | make | browser | promtool) "setup_$1" ;;
*)
    echo "usage: ops/setup.sh venv|packages|project|java|jars|make|browser|promtool" >&2
    exit 2
    ;;
esac

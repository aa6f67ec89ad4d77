#!/bin/sh
# Makes the virtual environment that the Makefile works in: make_venv.sh DIRECTORY
# Takes $PYTHON if it is set, else the first interpreter on PATH that is new enough (3.10) and complete (the venv
# module, the headers to compile against). If there is none it says what is missing in the best one it saw.
set -eu

venv=$1
complaint="no Python 3.10 or newer on PATH"

usable() {
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10) or sys.implementation.name != "cpython")' \
        >/dev/null 2>&1 || return 1
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    where=$("$1" -c 'import sys; print(sys.executable)')
    if ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        complaint="$where has no venv module (Debian, Ubuntu: apt-get install python$version-venv)"
        return 1
    fi
    if ! "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(
            os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        complaint="$where has no C headers (Debian, Ubuntu: apt-get install python$version-dev)"
        return 1
    fi
}

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

if ! command -v "${CC:-cc}" >/dev/null 2>&1; then
    echo "make_venv.sh: no C compiler (${CC:-cc}) on PATH (Debian, Ubuntu: apt-get install gcc)" >&2
    exit 1
fi

for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10 python}; do
    if usable "$python"; then
        rm -rf "$venv"
        exec "$python" -m venv "$venv"
    fi
done

echo "make_venv.sh: $complaint" >&2
echo "make_venv.sh: an interpreter elsewhere can be named: make PYTHON=/path/to/python3.12" >&2
exit 1

#!/bin/sh
# Sees to it that there is a Node.js of at least version 20 with npm, and prints "npm" if so.
# As root on Debian it installs the packages nodejs and npm. Where that gives nothing new enough, it explains and prints
# nothing: what needs Node.js is then left out.
set -eu

OLDEST=20

is_there() {
    command -v node >/dev/null && command -v npm >/dev/null &&
        [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$OLDEST" ]
}

if ! is_there && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && ! command -v node >/dev/null; then
    echo "Installing nodejs and npm ..." >&2
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get -q update && apt-get -q install -y --no-install-recommends nodejs npm; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
    fi
    rm -f "$log"
fi

if is_there; then
    echo npm
else
    found=$(node --version 2>/dev/null || echo none)
    echo "No Node.js $OLDEST or newer with npm here (found: $found): what needs it is left out, the tests of the" >&2
    echo "JavaScript client among it. To have it, install nodejs and npm, from your distribution or from nodejs.org." >&2
fi

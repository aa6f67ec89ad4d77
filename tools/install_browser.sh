#!/bin/sh
# Sees to it that the browser tests have a Chromium, and prints the path of it.
# As root on Debian it installs the packages chromium and chromium-driver. Elsewhere it explains and prints nothing:
# the browser tests are then skipped, and pytest's summary says so.
set -eu

find_chromium() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name"; then return 0; fi
    done
    return 1
}

if find_chromium; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing chromium and chromium-driver for the browser tests ..." >&2
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if { apt-get -q update && apt-get -q install -y --no-install-recommends chromium chromium-driver; } >"$log" 2>&1 &&
        find_chromium; then
        rm -f "$log"
        exit 0
    fi
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "install_browser.sh: the packages chromium and chromium-driver could not be installed" >&2
    exit 1
fi

echo "No Chromium on this machine: the browser tests are skipped. To have them run, install the packages" >&2
echo "chromium and chromium-driver (Debian: apt-get install chromium chromium-driver) or Google Chrome." >&2

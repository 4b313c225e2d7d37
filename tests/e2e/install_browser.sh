#!/bin/sh
# Find a Chromium for the browser tests: one that is there, else Playwright's own, else Debian's.
# Where none can be had, say so; the browser tests then fail and say it again.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then
        echo "Browser tests use $(command -v "$name")."
        exit 0
    fi
done
if "$BIN/python" -m playwright install chromium; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq chromium && exit 0
fi
echo "No Chromium could be installed: the browser tests will fail. Install one and run again." >&2

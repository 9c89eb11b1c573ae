#!/bin/sh
# browser.sh VENV: what the tests in a browser drive: a Chromium, from apt where there is none, and axe-core, from npm.
# Where one cannot be had a line says so, and the tests that need it say what they skip.
set -u
venv=$1 axe=4.14.1

# At most five minutes, where the system has `timeout`; macOS has none.
limited() {
  if command -v timeout >/dev/null; then timeout 300 "$@"; else "$@"; fi
}

found() {
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" && return
  done
  [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ]
}

if ! found >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    limited apt-get install -qq -y --no-install-recommends chromium-headless-shell >/dev/null 2>&1 ||
      { limited apt-get update -qq && limited apt-get install -qq -y --no-install-recommends chromium-headless-shell; } >/dev/null 2>&1 ||
      { limited apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1
  fi
  found >/dev/null || echo "no Chromium here, and none could be installed: tests in a browser are skipped"
fi

if [ ! -f "$venv/node_modules/axe-core/axe.min.js" ]; then
  limited npm install --prefix "$venv" --no-save --no-package-lock --silent "axe-core@$axe" >/dev/null 2>&1 ||
    echo "axe-core could not be installed with npm: accessibility is not checked"
fi

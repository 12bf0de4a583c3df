# shellcheck shell=bash
# Sourced: gives the tests of the report's page a browser to look at it.
#
#   need_browser       a Chromium or Chrome is in PATH; where there is none, Debian's is installed, if that can be
#
# What cannot be is said in one line on stderr, with exit 1: without a browser those tests would be skipped unseen.

BROWSERS="chromium chromium-browser google-chrome"

has_browser() {
  local name
  for name in $BROWSERS; do
    if command -v "$name" >/dev/null 2>&1; then
      return
    fi
  done
  return 1
}

need_browser() {
  if has_browser; then
    return
  fi
  if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null || true
  fi
  if ! has_browser; then
    echo "autoconv: the tests of the report need a browser: install Chromium or Chrome" >&2
    exit 1
  fi
}

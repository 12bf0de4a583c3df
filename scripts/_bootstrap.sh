# shellcheck shell=bash
# Sourced by the scripts beside it: gives the checkout a virtual environment of its own, .venv-scripts, or what VENV is
# set to since.
#
#   bootstrap          $VENV/bin/python runs this checkout of autoconv, with the MLX that fits the machine
#   bootstrap GROUP    and has the packages of pyproject.toml's dependency group GROUP
#
# A second call finds all in place and installs nothing. The environment is made anew where it is broken, or where
# pyproject.toml, the backend, the Python asked for or the checkout's place has changed. A backend is never installed
# over another: MLX's CPU and CUDA packages ship the same library file. What cannot be is said in one line on stderr,
# with exit 1.
#
#   AUTOCONV_BACKEND   cpu or cuda13, on Linux; default: cuda13 where an NVIDIA driver can run it, else cpu
#   AUTOCONV_PYTHON    the Python to use, a command or a path; default: uv's choice, or the first fit one of $PYTHONS
#
# Where packages come from is for the machine's own configuration of uv or pip to say. Written for bash 3.2, which is
# what macOS has.

# What a user's shell may have set for other uses.
unset CDPATH PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON
export PYTHONNOUSERSITE=1

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv-scripts
PYTHONS="python3.13 python3.12 python3.11 python3"

say() { printf 'autoconv: %s\n' "$1" >&2; }

fail() {
  say "$1"
  exit 1
}

check_platform() {
  local system version
  system=$(uname -s)
  case $system in
    Darwin)
      if [ "$(uname -m)" != arm64 ]; then
        if [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" = 1 ] ||
          [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ]; then
          fail "this shell runs under Rosetta; start it natively, as with: arch -arm64 $0"
        fi
        fail "MLX runs on Apple silicon, and this is an Intel Mac; use a Mac with an M1 or later, or Linux"
      fi
      # The variable makes even a program built for an old macOS see the true version.
      version=$(SYSTEM_VERSION_COMPAT=0 sw_vers -productVersion)
      if [ "${version%%.*}" -lt 14 ]; then
        fail "MLX needs macOS 14 or later, and this is macOS $version; update it"
      fi
      ;;
    Linux) ;;
    *) fail "MLX runs on macOS and Linux, and this is $system; use one of those" ;;
  esac
}

# Prints the extra of pyproject.toml that brings MLX's backend; nothing on macOS, where MLX brings its own.
backend() {
  local driver
  if [ "$(uname -s)" = Darwin ]; then
    return
  fi
  case ${AUTOCONV_BACKEND:-} in
    cpu | cuda13) echo "$AUTOCONV_BACKEND" ;;
    "")
      driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || driver=
      driver=${driver%%.*}
      case $driver in
        "" | *[!0-9]*) echo cpu ;;
        *)
          if [ "$driver" -ge 580 ]; then
            echo cuda13
          else
            say "CUDA 13 needs an NVIDIA driver from 580 on, and this is $driver: using the CPU"
            echo cpu
          fi
          ;;
      esac
      ;;
    *) fail "AUTOCONV_BACKEND is '$AUTOCONV_BACKEND', and can be cpu or cuda13; change or unset it" ;;
  esac
}

# Prints a Python's version, and says by its exit status what keeps it from being used, `venv` if that is asked for.
PROBE='
import platform, sys
print("%d.%d.%d" % sys.version_info[:3])
if sys.version_info < (3, 11):
    sys.exit(11)
if sys.platform == "darwin" and platform.machine() != "arm64":
    sys.exit(12)
if "venv" in sys.argv:
    try:
        import ensurepip, venv
    except ImportError:
        sys.exit(13)
'

# Prints the first Python that can make an environment.
find_python() {
  local python version status old="" unfit=""
  if [ -n "${AUTOCONV_PYTHON:-}" ]; then
    set -- "$AUTOCONV_PYTHON"
  else
    # shellcheck disable=SC2086
    set -- $PYTHONS
  fi
  for python in "$@"; do
    status=0
    version=$("$python" -I -c "$PROBE" venv 2>/dev/null) || status=$?
    case $status in
      0)
        echo "$python"
        return
        ;;
      11) old="$python is Python $version, and autoconv needs 3.11 or later" ;;
      12) unfit="$python runs under Rosetta; install a Python $version for Apple silicon" ;;
      13) unfit="$python has no venv; on Debian and Ubuntu: apt install python3-venv python${version%.*}-venv" ;;
    esac
  done
  if [ -n "$unfit" ]; then
    fail "$unfit"
  fi
  if [ -z "$old" ] && [ -n "${AUTOCONV_PYTHON:-}" ]; then
    fail "AUTOCONV_PYTHON is '$AUTOCONV_PYTHON', which does not run; change or unset it"
  fi
  fail "${old:-there is no Python here, and autoconv needs 3.11 or later}; install Python 3.13, or uv"
}

# Makes the environment, with what uv finds or brings, or with a Python that is here.
make_with_uv() {
  command -v uv >/dev/null 2>&1 || return 1
  say "making ${VENV##*/} with uv"
  uv venv --quiet --python "${AUTOCONV_PYTHON:->=3.11}" "$VENV" </dev/null &&
    "$VENV/bin/python" -I -c "$PROBE" >/dev/null
}

make_with_venv() {
  local python
  python=$(find_python) || exit 1
  say "making ${VENV##*/} with $python"
  "$python" -I -m venv "$VENV" </dev/null || fail "$python could not make ${VENV##*/}; the lines above say why"
}

# Prints the requirements of dependency group $1, one a line: older installers know of no groups.
requirements() {
  "$VENV/bin/python" -I -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"][sys.argv[2]]))
' "$ROOT/pyproject.toml" "$1"
}

# Installs the checkout with extra $1 and group $2, either may be empty, by what made the environment.
install() {
  local extra=${1:+[$1]} line lines
  lines=$([ -z "$2" ] || requirements "$2") || return 1
  set -- -e ".$extra"
  while IFS= read -r line; do
    if [ -n "$line" ]; then
      set -- "$@" "$line"
    fi
  done <<<"$lines"
  say "installing autoconv$extra and what it needs; the first time takes minutes"
  cd "$ROOT" || return 1
  if [ -e "$VENV/bin/pip" ]; then
    "$VENV/bin/python" -I -m pip install -qq --no-user --no-input --disable-pip-version-check "$@" </dev/null
  else
    uv pip install --quiet --python "$VENV/bin/python" "$@" </dev/null
  fi
}

# Succeeds where the environment's Python runs and MLX starts; else prints the last line of the error.
works() {
  local output
  output=$("$VENV/bin/python" -I -c 'import click, mlx.core' 2>&1) && return
  printf '%s\n' "$output" | tail -n 1
  return 1
}

bootstrap() {
  local group=${1:-} extra key problem
  check_platform
  extra=$(backend) || exit 1
  key="$ROOT ${extra:-metal} ${AUTOCONV_PYTHON:-any} $(cksum <"$ROOT/pyproject.toml")"
  if [ "$(cat "$VENV/made-for" 2>/dev/null)" = "$key" ] && works >/dev/null; then
    if [ -z "$group" ] || [ -e "$VENV/has-$group" ]; then
      return
    fi
    if [ -e "$VENV/bin/pip" ] || command -v uv >/dev/null 2>&1; then
      (install "$extra" "$group") || fail "installing failed; the lines above say why"
      : >"$VENV/has-$group"
      return
    fi
  fi
  rm -rf "$VENV"
  if ! (make_with_uv && install "$extra" "$group"); then
    if [ -e "$VENV" ]; then
      say "uv could not do it; trying with venv and pip"
      rm -rf "$VENV"
    fi
    make_with_venv
    (install "$extra" "$group") || fail "installing failed; the lines above say why"
  fi
  problem=$(works) || fail "MLX was installed but does not start: $problem"
  if [ -n "$group" ]; then
    : >"$VENV/has-$group"
  fi
  # Last, so that an environment whose making was cut short is made anew.
  printf '%s\n' "$key" >"$VENV/made-for"
}

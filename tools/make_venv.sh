#!/bin/sh
# make_venv.sh VENV [PYTHON]: make the environment VENV with a Python that pyproject.toml allows.
# PYTHON is taken or refused; without it, the first that runs and suits, and one line says which and why.
set -eu
venv=$1 asked=${2:-}
cd "$(dirname "$0")/.."
range=$(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' pyproject.toml)
first=${range% *} last=$((${range#* } - 1))
needs="Faísca needs Python 3.$first to 3.$last"

version() { # of an interpreter, as in 3.13.0; nothing where it does not run, as a shim of pyenv's may not
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

suits() { # a version
  minor=${1#3.}
  minor=${minor%%.*}
  case $1 in 3.*) [ "$minor" -ge "$first" ] && [ "$minor" -le "$last" ] ;; *) false ;; esac
}

fail() {
  echo "faisca: $*" >&2
  exit 2
}

make_with() { # a venv keeps the Python it has, so one with another version is made anew
  if [ -e "$venv/pyvenv.cfg" ] && [ "$(version "$venv/bin/python")" != "$(version "$1")" ]; then set -- "$1" --clear; fi
  python=$1
  shift
  exec "$python" -m venv "$@" "$venv"
}

if [ -n "$asked" ]; then
  remedy="name one from 3.$first to 3.$last, or leave PYTHON out"
  found=$(version "$asked")
  [ -n "$found" ] || fail "PYTHON=$asked does not run: $remedy"
  suits "$found" || fail "PYTHON=$asked is Python $found: $remedy"
  make_with "$asked"
fi

passed=
for python in "$venv/bin/python" python3 python3.13 python3.12 python3.11 python3.14 uv; do
  if [ "$python" = uv ]; then # the Pythons that uv has installed are not on PATH
    python=$(uv python find --no-project ">=3.$first,<3.$((last + 1))" 2>/dev/null) || break
  fi
  found=$(version "$python")
  if suits "$found"; then
    echo "$python is Python $found${passed:+ ($needs, and $passed)}: taken for $venv"
    make_with "$python"
  fi
  [ -z "$found" ] || passed="${passed:+$passed, }$python is $found"
done
fail "$needs, and found none${passed:+: $passed}; install one (brew install python@3.13," \
  "or uv python install 3.13), or name one: make install PYTHON=/path/to/python"

# Sourced by scripts/demo and scripts/test: the clone's own virtual environment .venv, made when it is not there and
# filled again when what it is made from has changed.
#
# Packages come from wherever your pip settings say (index, proxy, certificates), at the versions in constraints.txt.
# PYTHON names the interpreter; by default it is the first of python3, python, python3.14 ... python3.11 that is 3.11 or
# later.

venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

is_usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The interpreter to make the environment with; one that is named but does not do is an error, not a reason to guess.
find_python() {
  local name
  for name in ${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11}; do
    if is_usable "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  if [ -n "${PYTHON:-}" ]; then
    say "error: PYTHON is '$PYTHON', which is not a Python of version 3.11 or later; name one that is"
  else
    say "error: no Python 3.11 or later on PATH; install one, or name it: PYTHON=/path/to/python3.12 $0"
  fi
  return 2
}

pip_install() {
  # Bytecode is written at a module's first import: compiling all of torch beforehand takes longer than installing it.
  "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
    --constraint "$root/scripts/constraints.txt" "$@"
}

# need_environment EXTRA DOWNLOAD [GROUP...]: the project with that extra and those dependency groups of pyproject.toml.
# DOWNLOAD says what that fetches.
need_environment() {
  local extra=$1 download=$2 python=$venv/bin/python wanted
  shift 2
  local groups=$*
  local stamp=$venv/made-for-$extra${groups:+-${groups// /-}}
  if ! is_usable "$python"; then
    python=$(find_python)
    say "Making the environment .venv with $("$python" --version)."
    if ! "$python" -m venv --clear "$venv"; then
      say "error: $python makes no virtual environments; install its venv module (Debian and Ubuntu: python3-venv)"
      return 2
    fi
    python=$venv/bin/python
  fi
  wanted=$("$python" - "$root"/pyproject.toml "$root"/scripts/constraints.txt "$root"/scripts/environment.sh <<'PYTHON'
import hashlib, pathlib, sys
print(sys.version.split()[0], *(hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest() for name in sys.argv[1:]))
PYTHON
  )
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return
  fi
  say "Installing into .venv, once: $download."
  if [ "$(uname)" = Linux ]; then
    say "That is with a CPU build of torch. The default package index has its CUDA build, about 3 GB more: to go without,"
    say "name an index of CPU builds in your pip settings first (PIP_EXTRA_INDEX_URL, or PIP_FIND_LINKS)."
  fi
  rm -f "$stamp"
  pip_install hatchling editables
  "$python" - "$@" > "$venv/more-requirements.txt" <<'PYTHON'
import sys, tomllib
groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]
print(*(line for name in sys.argv[1:] for line in groups[name]), sep="\n")
PYTHON
  pip_install --no-build-isolation --editable ".[$extra]" --requirement "$venv/more-requirements.txt"
  printf '%s\n' "$wanted" > "$stamp"
}

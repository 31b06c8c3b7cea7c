#!/usr/bin/env bash
# Makes .venv and installs sparse3d into it with everything the tools and tests need. Run it again at
# any time: what is there is kept. quickstart.sh and run_tests.sh source it.
#
#   SPARSE3D_VENV    another place for the virtual environment
#   PYTHON           another interpreter (3.10 or newer)
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV=${SPARSE3D_VENV:-$ROOT/.venv}
PYTHON=${PYTHON:-python3}
TORCH_VERSION=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '\n== %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"; else return 1; fi
}

# Debian packages: the viewer's libraries, and a compiler for the native kernels.
missing_packages() {
  local have
  have=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p)
  [[ $have == *libusb-1.0.so.0* ]] || echo libusb-1.0-0
  [[ $have == *libEGL.so.1* ]] || echo libegl1
  [[ $have == *libGL.so.1* ]] || echo libgl1
  [[ $have == *libgomp.so.1* ]] || echo libgomp1
  command -v g++ >/dev/null || echo g++
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

install_packages() {
  local missing
  missing=$(missing_packages | tr '\n' ' ')
  [ -z "${missing// /}" ] && return 0
  say "Debian packages: $missing"
  # shellcheck disable=SC2086
  if command -v apt-get >/dev/null && as_root apt-get update -qq &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $missing >/dev/null; then
    return 0
  fi
  echo "Could not install them by itself. Please run:  apt-get install $missing"
  echo "Without g++ the native CPU kernels are missing and everything runs several times slower;"
  echo "without libusb, libegl1 and libgl1 the Open3D pictures and the ray caster of the world fail."
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }

reachable() {
  "$VENV/bin/python" - "$1" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5).close()
PY
}

# Never a CUDA build where there is no GPU: it is gigabytes that cannot be used.
install_torch() {
  "$VENV/bin/python" -c 'import torch' 2>/dev/null && return 0
  if has_gpu; then
    say "torch (a GPU is present: the CUDA build)"
    "$VENV/bin/pip" install -q torch
  elif reachable "$TORCH_CPU_INDEX"; then
    say "torch $TORCH_VERSION (CPU build)"
    "$VENV/bin/pip" install -q "torch==$TORCH_VERSION" --index-url "$TORCH_CPU_INDEX"
  else
    say "torch $TORCH_VERSION"
    "$VENV/bin/pip" install -q "torch==$TORCH_VERSION"
  fi
}

install_all() {
  install_packages
  "$PYTHON" -c 'import sys; assert sys.version_info >= (3, 10), sys.version' ||
    { echo "Python 3.10 or newer is needed; set PYTHON=/path/to/python3.11"; return 1; }
  [ -x "$VENV/bin/pip" ] || { say "virtual environment in $VENV"; "$PYTHON" -m venv "$VENV"; }
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  install_torch
  local stamp
  stamp=$VENV/.sparse3d-$(cat setup.py pyproject.toml | sha256sum | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    say "sparse3d and what it needs"
    local extras=view,test,peers,text,pose,web,photos
    if has_gpu; then extras=$extras,cuda; fi
    "$VENV/bin/pip" install -q -e ".[$extras]"
    touch "$stamp"
  fi
  "$VENV/bin/python" -c 'from sparse3d.ops import native; print("native CPU kernels:", "ready" if native.available() else "absent (no compiler): everything runs, several times slower")'
}

install_all

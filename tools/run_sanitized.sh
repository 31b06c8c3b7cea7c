#!/bin/sh
# Runs tests (of the operators, or those named) on kernels built with AddressSanitizer and UBSan:
#     tools/run_sanitized.sh [tests/ops/test_conv.py ...]
# The first out-of-bounds access or undefined behaviour stops the run and names the source line.
set -e
cd "$(dirname "$0")/.."
cxx="${CXX:-g++}"
export SPARSE3D_SANITIZE=1
# leaks: Python and torch keep memory until they end, so that leak reports say nothing here
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
libraries="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"
[ $# -gt 0 ] || set -- tests/ops
LD_PRELOAD="$libraries" exec "${PYTHON:-python}" -m pytest -q -p no:cacheprovider "$@"

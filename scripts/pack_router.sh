#!/usr/bin/env bash
# Makes the router pack that is part of the program, from the public outcomes in data/.
#
#     scripts/pack_router.sh [SHOAL [OUT]]
#
# SHOAL is a built `shoal`; OUT is node/assets/router.pack by default. Equal data gives equal bytes: no clock, no key
# and no order of a file system takes part.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
shoal=${1:-$root/target/debug/shoal}
out=${2:-$root/node/assets/router.pack}

# Set and licence, as data/README.md has them.
sets=(
  "llmrouter9:MIT"
  "mmlupro12:Apache-2.0; MMLU-Pro MIT"
  "routellm_gsm8k:Apache-2.0; GSM8K MIT"
  "routellm_mmlu:Apache-2.0; MMLU MIT"
  "routerbench11:MIT"
)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
words=()
for entry in "${sets[@]}"; do
  name=${entry%%:*}
  gzip -dc "$root/data/routing/$name.jsonl.gz" >"$folder/$name.jsonl"
  cp "$root/data/routing/$name.models.json" "$folder/"
  words+=(--from "$folder/$name.jsonl" --licence "${entry#*:}")
done
"$shoal" router train "${words[@]}" --classes-only --unsigned --name "public outcomes" --out "$out" --data-dir "$folder/none"

#!/usr/bin/env bash
# Both ways between this library and Hugging Face PEFT, on a real model:
#   scripts/interop/run.sh PYTHON PEFT MODEL_DIR ADAPTER_DIR MERGED_DIR SENTENCES
# An adapter that `peft train` wrote gives the same logits in PEFT; so does the merged model in transformers; and adapters
# that PEFT wrote give the same logits in `peft forward`.
set -euo pipefail
python=$1 peft=$2 model=$3 adapter=$4 merged=$5 sentences=$6
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

head -n 24 "$sentences" | "$python" "$here/encode.py" "$model" > "$work/input.jsonl"

echo "adapter of ours in PEFT"
"$peft" forward --model "$model" --adapter "$adapter" --input "$work/input.jsonl" --output "$work/ours.safetensors"
"$python" "$here/check_adapter.py" "$model" "$adapter" "$work/input.jsonl" "$work/ours.safetensors"

echo "merged model in transformers"
"$peft" forward --model "$merged" --input "$work/input.jsonl" --output "$work/merged.safetensors"
"$python" "$here/check_adapter.py" --no-adapter "$merged" "$work/input.jsonl" "$work/merged.safetensors"

for method in lora ia3 prompt prefix; do
    echo "$method of PEFT in ours"
    "$python" "$here/make_adapter.py" "$model" "$method" "$work/$method"
    "$peft" forward --model "$model" --adapter "$work/$method" --input "$work/input.jsonl" --output "$work/$method.safetensors"
    "$python" "$here/check_adapter.py" "$model" "$work/$method" "$work/input.jsonl" "$work/$method.safetensors"
done

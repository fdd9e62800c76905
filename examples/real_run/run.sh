#!/usr/bin/env bash
# Train a model on real explanations, score real items under base and epochs, and write the report.
# Give the same command again after a stop: it continues. When all is done, it does nothing.
#
#   run.sh MODEL DATA [OUT]
#   EPOCHS=12 SCORED=1,2,3,5,8,12 ITEMS=300   how many epochs, which are scored, items a file
set -euo pipefail
model=$1 data=${2:-} out=${3:-runs/real}
epochs=${EPOCHS:-5} items=${ITEMS:-300}
scored=${SCORED:-1-$epochs}

train=""
[ -n "$data" ] && train=$(find "$data/train" -name 'expert_explanations_105*.jsonl' 2>/dev/null | sort | head -1)
if [ -z "$train" ]; then
    echo "error: expected DATA=DIR with train/expert_explanations_105*.jsonl and pairs/*.jsonl, got: ${data:-none}" >&2
    exit 3
fi
settings="model=$model train=$train epochs=$epochs scored=$scored items=$items"
if [ -f "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
    echo "error: expected the settings that $out was begun with ($(cat "$out/settings")), got: $settings" >&2
    exit 2
fi
if [ -f "$out/done" ]; then
    echo "$out/report/report.html"
    exit 0
fi
mkdir -p "$out/pairs"
echo "$settings" > "$out/settings"
pairs=()
for file in "$data"/pairs/literary_*.jsonl "$data"/pairs/factual_*.jsonl; do
    head -n "$items" "$file" > "$out/pairs/$(basename "$file")"
    pairs+=(--pairs "$out/pairs/$(basename "$file")")
done

cqa-fast train --model "$model" --data "$train" --out "$out/train" --epochs "$epochs" --resume
cqa-fast score --model "$model" --run "$out/train" --epochs "$scored" --out "$out/scores" \
    --too-long drop "${pairs[@]}"
cqa-fast report "$out/scores" --run "$out/train" --out "$out/report"
touch "$out/done"

#!/usr/bin/env bash
# Train a model on real explanations, score real items under base and epochs, and write the report.
# Give the same command again after a stop: it continues. When all is done, it does nothing.
#
#   run.sh MODEL DATA [OUT]
#   EPOCHS=5           passes over the samples
#   MAX_TOKENS=        leaves longer samples out
#   SEEDS=0            one run a seed; PLACEBO=1 adds one with the responses dealt to other prompts
#   SCORED=1,2,3,4,5   epochs of the first run that are scored
#   MORE=              epochs of the other runs that are; SCORED where not given
#   CHARACTERS=60000   of each file the first items within so many characters; 0 takes all. With
#                      more of them the same folder goes on: what it holds is not scored again
#   CUT=0              shortens the passages of books to so many characters each; 0 leaves them
#   NULLS=2            null contexts
#   JOBS=1             runs trained at a time
set -euo pipefail
here=$(dirname "$0")
model=$1 data=${2:-} out=${3:-runs/real}
epochs=${EPOCHS:-5} seeds=${SEEDS:-0} characters=${CHARACTERS:-60000} cut=${CUT:-0} nulls=${NULLS:-2}
scored=${SCORED:-$(seq -s , 1 "$epochs")}
more=${MORE:-$scored}

train=""
[ -n "$data" ] && train=$(find "$data/train" -name 'expert_explanations_105*.jsonl' 2>/dev/null | sort | head -1)
if [ -z "$train" ]; then
    echo "error: expected DATA=DIR with train/expert_explanations_105*.jsonl and pairs/*.jsonl, got: ${data:-none}" >&2
    exit 3
fi
settings="$model $train $epochs ${MAX_TOKENS:-all} $seeds ${PLACEBO:-0} $scored $more $characters $cut $nulls"
if [ -f "$out/done" ] && [ "$(cat "$out/done")" = "$settings" ]; then
    echo "$out/report/report.html"
    exit 0
fi
mkdir -p "$out/pairs" "$out/continuations"

recipe=(--model "$model" --data "$train" --epochs "$epochs" --resume)
[ -n "${MAX_TOKENS:-}" ] && recipe+=(--max-tokens "$MAX_TOKENS" --too-long drop)
runs=() each=()
for seed in ${seeds//,/ }; do
    runs+=("$out/seed-$seed")
    each+=(--no-placebo --seed "$seed" --out "$out/seed-$seed")
done
if [ "${PLACEBO:-0}" = 1 ]; then
    runs+=("$out/placebo")
    each+=(--placebo --seed "${seeds%%,*}" --out "$out/placebo")
fi
printf '%s\0' "${each[@]}" | xargs -0 -n 5 -P "${JOBS:-1}" cqa-fast train "${recipe[@]}"

texts=()
for file in "$data"/pairs/{literary,factual}_*.jsonl "$data"/continuations/{literary,factual}.jsonl; do
    [ -f "$file" ] || continue
    kind=$(basename "$(dirname "$file")")
    passages=0
    [[ $file == *continuation* ]] && passages=$cut
    chosen="$out/$kind/$(basename "$file")"
    python "$here/choose.py" "$file" "$chosen" --characters "$characters" --cut "$passages" >&2
    texts+=("--$kind" "$chosen")
done
adapters=() taken=$scored
for run in "${runs[@]}"; do
    for epoch in ${taken//,/ }; do
        adapters+=(--adapter "$run/epoch-$(printf '%02d' "$epoch")")
    done
    taken=$more
done
cqa-fast score --model "$model" "${adapters[@]}" --out "$out/scores" --nulls "$nulls" \
    --too-long drop "${texts[@]}" | tee "$out/tables.txt"
cqa-fast report "$out/scores" --run "${runs[0]}" --out "$out/report"
echo "$settings" > "$out/done"

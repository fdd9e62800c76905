#!/usr/bin/env bash
# Everything to be known of a machine with a GPU, in one command of at most nine minutes:
#
#     bench/gpu.sh [FOLDER]        FOLDER: bench/results/gpu
#
# The gpu-marked tests first, then the benchmarks at the shapes of Qwen2.5-7B and 0.5B. Every part
# has a limit of its own and writes its JSON as results come. The most telling parts come first, and
# the limits of these fit into the time together; what does not fit after them is named. It needs
# Python 3.11 with torch, nothing is downloaded, and what else is missing is said. PYTHON names
# another interpreter; MINUTES another limit.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/gpu}
python=${PYTHON:-python3}
deadline=$((SECONDS + 60 * ${MINUTES:-9} - 15))
export PYTHONPATH="$PWD:$PWD/cli${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$out"
failed=0

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# part NAME LIMIT_S COMMAND...: run it within its limit and what is left, keep its output
part() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) started=$SECONDS rc
    shift 2
    if ((left < 10)); then
        say "$name: not run, the time is up"
        failed=1
        return
    fi
    ((limit < left)) || limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
    rc=$?
    case $rc in
    0) say "$name: done in $((SECONDS - started)) s" ;;
    124 | 137) say "$name: stopped after its $limit s; what had ended is in $out" ;;
    *) say "$name: exit $rc after $((SECONDS - started)) s: $(tail -n 1 "$out/$name.txt" | cut -c1-300)" ;;
    esac
    ((rc == 0)) || failed=1
}

measure() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m cqa_fast bench --device cuda --out "$out/$name.json" "$@"
}

: >"$out/summary.txt"
"$python" - >"$out/machine.txt" 2>&1 <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

if sys.version_info < (3, 11):
    sys.exit(f"expected Python 3.11 or newer, got {sys.version.split()[0]}")
needed = (
    "torch triton numpy scipy safetensors tokenizers transformers huggingface_hub click rich "
    "pyyaml filelock jinja2 markupsafe matplotlib"
)
peers = "pytest hypothesis peft lm_eval liger_kernel unsloth flash_attn"
missing = {"needed": [], "for tests and peers": []}
for kind, names in (("needed", needed), ("for tests and peers", peers)):
    for name in names.split():
        try:
            print(name, version(name))
        except PackageNotFoundError:
            missing[kind].append(name)
for kind, names in missing.items():
    if names:
        print(f"missing, {kind}: {', '.join(names)}")
if "torch" in missing["needed"]:
    sys.exit("expected torch, got none")
import torch

if not torch.cuda.is_available():
    sys.exit(f"expected a CUDA device, got none with torch {torch.__version__}")
print(torch.cuda.get_device_name(), torch.version.cuda)
PYTHON
ready=$?
say "$(grep -E '^missing|^expected' "$out/machine.txt" || echo 'nothing is missing')"
if ((ready != 0)); then
    tail -n 3 "$out/machine.txt" >&2
    exit 6
fi
nvidia-smi >>"$out/machine.txt" 2>&1 || say "nvidia-smi: not there"

# files that have no such test are not imported, and workers compile side by side
mapfile -t files < <(grep -lrE 'mark\.gpu|ON_DEVICES' tests --include='test_*.py')
workers=()
if "$python" -c 'import xdist' 2>>"$out/machine.txt"; then workers=(-n 4); fi
part tests 90 "$python" -m pytest -v -m gpu -W default --junitxml "$out/tests.xml" \
    -p no:cacheprovider "${workers[@]}" "${files[@]}"
big=(--shape qwen2.5-7b) small=(--shape qwen2.5-0.5b)
window=(--window 0+700,0+700) # two of the paper's samples
measure step-7b 130 "${big[@]}" --levels step "${window[@]}" --peers --seconds 1
measure kernel-7b 50 "${big[@]}" --levels kernel --seconds 0.2
measure score-7b 95 "${big[@]}" --levels score --peers --seconds 0.5 --batch-tokens 8192 \
    --job '8x800+2x100*8' --job 2x4096+2x100 --job 400x20+2x10 --job 1x1+1x8192
measure paper-run-7b 100 "${big[@]}" --levels step "${window[@]}" --steps 564 --seconds 0.5
measure step-0.5b 30 "${small[@]}" --levels step "${window[@]}" --seconds 0.5
measure step-0.5b-graphs 30 "${small[@]}" --levels step "${window[@]}" --seconds 0.5 --cuda-graphs
# what the parts above have left over; the ops one by one compile hundreds of kernels
part op-tests 150 "$python" -m pytest -q -m gpu -W default --junitxml "$out/op-tests.xml" \
    -p no:cacheprovider "${workers[@]}" tests/kernels tests/model/test_triton.py
measure step-7b-story 50 "${big[@]}" --levels step --window 1884+112,1884+112 --seconds 1
measure score-0.5b 40 "${small[@]}" --levels score --seconds 0.5 --batch-tokens 8192 \
    --job '40x800+2x100*8' --job 400x20+2x10
measure kernel-0.5b 40 "${small[@]}" --levels kernel --seconds 0.1
measure peers-0.5b 90 "${small[@]}" --levels step,score "${window[@]}" --job 8x800+2x100 --peers \
    --seconds 0.5
# each op beside what the model of docs/gpu-model.md says of it
part against-model 90 "$python" bench/aot.py --measured "$out/kernel-7b.json"
say "results are in $out"
exit "$failed"

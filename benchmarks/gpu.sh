#!/usr/bin/env bash
# Everything that wants a GPU, in stages that each end within LIMIT seconds and go on where they stopped:
#   benchmarks/gpu.sh STAGE          run a stage; exit code 124: out of time, run it again
#   benchmarks/gpu.sh                list the stages
# Settings by environment: COHORTSEG_DATA (the data), OUT (results, runs/gpu), PRESET (recipe, cpu), SEEDS ("0 1 2"),
# CONFIG (TOML with settings over the recipe), LIMIT (540). SMOKE=1: tiny settings, to try the stages on a CPU.
# The stage `package` trains the model that ships, so PRESET and SEEDS do not matter to it; leave CONFIG empty.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu} PRESET=${PRESET:-cpu} SEEDS=${SEEDS:-0 1 2} LIMIT=${LIMIT:-540} CONFIG=${CONFIG:-}
python=${PYTHON:-python}
stages="throughput memory recipe seeds table2 student robustness package collect"
rows=plain,vvm,prop,ssa,vvm+prop,ssa+prop,full folds=1,2,3,4,5 sizes="8 32 128" step="--size 192 --repeats 20"
if [[ " $stages " != *" ${1:-no stage} "* ]]; then
    echo "usage: benchmarks/gpu.sh STAGE, one of: $stages" >&2
    exit 2
fi
mkdir -p "$OUT"
if [[ ${SMOKE:-} ]]; then
    rows=plain,full folds=1 sizes=1 step="--size 64 --repeats 1" SEEDS=0 CONFIG=$OUT/smoke.toml
    printf '%s = 1\n' supervised_iterations adversarial_iterations batch_unlabeled > "$CONFIG"
    printf 'batch_labeled = 2\nwarmup_iterations = 0\n' >> "$CONFIG"
    printf '[canonical]\nsize = 64\n' >> "$CONFIG"
fi
config=(${CONFIG:+--config "$CONFIG"})
end=$((SECONDS + LIMIT))

# A command within what is left of the stage's time; its output is shown and kept under a name.
timed() {
    local name=$1
    shift
    ((end > SECONDS)) || exit 124
    timeout -s INT -k 20 $((end - SECONDS)) "$@" 2>&1 | tee "$OUT/$name.log"
}

# Train into a folder of OUT, unless the model is there; a run that was stopped goes on.
trained() {
    local run=$OUT/$1 resume=()
    [[ -f $run/settings.json ]] && resume=(--resume)
    [[ -f $run/model.safetensors ]] || timed "$1" "$python" -m cohortseg train "${@:2}" -o "$run" "${resume[@]}"
}

# Train one seed of the recipe, and measure it on the validation images.
recipe() {
    trained "seed$1" --preset "$PRESET" "${config[@]}" --seed "$1"
    timed "seed$1-val" "$python" -m cohortseg evaluate --model "$OUT/seed$1/model.safetensors" -o "$OUT/seed$1/val"
}

# Train the four teachers of the packaged model, two with painted foci and two without, and then their student.
package() {
    local no_foci=$OUT/no-foci.toml seed name teachers=()
    { echo "painted_foci = 0.0" && sed '/^painted_foci\b/d' "${CONFIG:-/dev/null}"; } > "$no_foci"
    for seed in 0 1; do
        trained "package-foci-$seed" --preset labels --no-holdout --seed "$seed" "${config[@]}"
        trained "package-plain-$seed" --preset labels --no-holdout --seed "$seed" --config "$no_foci"
    done
    for name in foci-0 foci-1 plain-0 plain-1; do teachers+=(--teacher "$OUT/package-$name/model.safetensors"); done
    trained package-student --preset student --no-holdout "${teachers[@]}" "${config[@]}"
}

case $1 in
throughput) timed throughput "$python" benchmarks/train_step.py --preset "$PRESET" $step ;;
memory) for size in $sizes; do timed "memory$size" "$python" benchmarks/train_step.py --preset "$PRESET" $step --batch "$size"; done ;;
recipe) recipe "${SEEDS%% *}" ;;
seeds) for seed in $SEEDS; do recipe "$seed"; done ;;
table2)
    timed table2 "$python" -m cohortseg compare -o "$OUT/table2" --preset "$PRESET" "${config[@]}" --rows $rows --folds $folds
    ;;
student) # like the packaged model: with CONFIG holding painted_foci = 0.35 and class_offsets = [0.0, 0.8, 1.6]
    timed student "$python" -m cohortseg compare -o "$OUT/student" --preset "$PRESET" "${config[@]}" --rows plain,student --folds $folds
    ;;
package) package ;;
robustness) timed robustness "$python" benchmarks/robustness.py --model "$OUT/seed${SEEDS%% *}/model.safetensors" ;;
collect) (cd "$OUT" && find . \( -name '*.log' -o -name '*.parquet' -o -name '*.json' -o -name page.html \) \
    -not -path '*/checkpoints/*' -print0 | tar -czf results.tar.gz --null -T -) && echo "$OUT/results.tar.gz" ;;
esac

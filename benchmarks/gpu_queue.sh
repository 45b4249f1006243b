#!/usr/bin/env bash
# Everything that waits for a GPU, most informative first, in slices that end before a time limit.
#
#   benchmarks/gpu_queue.sh                 every job that has no result yet, as far as the time goes
#   benchmarks/gpu_queue.sh --list          names of the jobs and whether they are done
#   DEVICE=cpu SCALE=cpu benchmarks/gpu_queue.sh     the same jobs in small, to try the queue
#
#   DEVICE   cuda or cpu (default: cuda)              SCALE    paper or cpu (default: paper)
#   LIMIT    seconds for this call (default: 540)     OUT      folder of result files (default: benchmarks/results/gpu)
#   WORK     folder of data sets and runs (default: gpu-work); keep it, and runs go on where they were
#   PYTHON   interpreter (default: python3)           JOBS     names of the only jobs to do (default: all)
#
# A job is done when its result file is there. One that is stopped by the limit goes on at the next call: benches anew,
# runs from their checkpoint. Needs what pyproject.toml lists, on PYTHONPATH or installed; the project itself need not be.
set -euo pipefail

cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} SCALE=${SCALE:-paper} LIMIT=${LIMIT:-540} PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu} WORK=${WORK:-gpu-work}
deadline=$((SECONDS + LIMIT))
mkdir -p "$OUT" "$WORK/path"
OUT=$(realpath "$OUT") WORK=$(realpath "$WORK")
for pair in om2p_data:om2p_data om2p_train:om2p_train om2p_cli:cli om2p_recipes:recipes; do
  ln -sfn "$PWD/${pair#*:}" "$WORK/path/${pair%%:*}" # the packages under the names they are installed by
done
export PYTHONPATH="$WORK/path${PYTHONPATH:+:$PYTHONPATH}"
export MINARI_DATASETS_PATH="$WORK/datasets" OM2P_HOME="$WORK/behaviour"
export PYTHONUNBUFFERED=1

if [ "$SCALE" = paper ]; then
  precisions=full,tf32,bf16 seconds=2 repeats=5 transitions=1000000 endured=100000
else
  precisions=full seconds=0.2 repeats=2 transitions=5000 endured=200
fi

om2p() { # om2p data|train ARGUMENTS...
  "$PYTHON" -c "from om2p_cli.$1 import main; main()" "${@:2}"
}
bench() { # bench TASK [ARGUMENTS...]
  om2p train bench --env "$1" --device "$DEVICE" --scale "$SCALE" --seconds "$seconds" --repeats "$repeats" --quiet \
    --out "$OUT/.$job.json" "${@:2}"
  mv "$OUT/.$job.json" "$OUT/$job.json"
}
profile() { # where the time of an update goes
  "$PYTHON" -m om2p_train.bench.profile "$1" cn "$DEVICE" "$SCALE" "$OUT/.$job.txt" && mv "$OUT/.$job.txt" "$OUT/$job.txt"
}
endurance() { # memory over a long run
  "$PYTHON" -m om2p_train.bench.endurance "$1" cn "$DEVICE" "$SCALE" "$endured" "$OUT/.$job.json"
  mv "$OUT/.$job.json" "$OUT/$job.json"
}
cell() { # cell TASK TIER RECIPE [ARGUMENTS...]: generate the data if need be, train, keep what a report needs
  local id="om2p/$1/$2-v0" runs="$WORK/runs/$1/$2/$3"
  om2p data show "$id" > /dev/null 2>&1 || om2p data generate --env "$1" --tier "$2" --transitions "$transitions" --quiet
  om2p train run --dataset "$id" --algo "$3" --seeds 0-4 --scale "$SCALE" --device "$DEVICE" --resume --quiet \
    --no-tensorboard --out "$runs" "${@:4}"
  "$PYTHON" -m om2p_train.bench.digest "$runs" "$OUT/$job.json"
}

jobs=(
  "tests"
  "bench-cn:bench cn --precision $precisions"
  "bench-hc:bench hc --precision $precisions --seeds 1,5 --no-latency"
  "profile-om2p:profile om2p"
  "profile-omar:profile omar"
  "endurance-om2p:endurance om2p"
  "compiled-cn:bench cn --recipes om2p,omar,ma-fql --precision full,tf32 --seeds 1,5 --no-peers --no-latency --set compute.compile=true"
)
for launch in 1 5 20 50; do
  [ "$SCALE" = paper ] || break
  jobs+=("launch-$launch:bench cn --recipes om2p --seeds 1,5 --precision tf32 --no-peers --no-latency --set compute.updates_per_launch=$launch")
done
for recipes in "om2p om2p-paper bc-flow om2p-released" "ma-fql omar bc ma-cql vgm2p ma-sfbc"; do
  for tier in expert medium; do
    for recipe in $recipes; do
      jobs+=("cell-cn-$tier-$recipe:cell cooperative-navigation $tier $recipe")
      jobs+=("cell-hc-$tier-$recipe:cell halfcheetah-2x3 $tier $recipe")
    done
  done
done

run_tests() { # the fast path is the plain path
  "$PYTHON" -m pytest -q -p no:cacheprovider tests/train/test_capture.py > "$OUT/.tests.txt" && mv "$OUT/.tests.txt" "$OUT/tests.txt"
}

for name in ${JOBS:-}; do
  [[ " ${jobs[*]%%:*} " == *" $name "* ]] || { echo "error: JOBS names $name; --list shows the jobs" >&2; exit 2; }
done

status=0
for entry in "${jobs[@]}"; do
  job=${entry%%:*} command=${entry#*:}
  [ -z "${JOBS:-}" ] || [[ " $JOBS " == *" $job "* ]] || continue
  if compgen -G "$OUT/$job.*" > /dev/null; then
    [ "${1:-}" = --list ] && echo "done     $job"
    continue
  fi
  [ "${1:-}" = --list ] && { echo "waiting  $job"; continue; }
  left=$((deadline - SECONDS))
  [ "$left" -gt 20 ] || { echo "out of time before $job"; break; }
  echo "== $job ($left s left)"
  [ "$job" = tests ] && command=run_tests
  # TERM lets a run write its checkpoint.
  export -f om2p bench profile endurance cell run_tests
  export job DEVICE SCALE OUT WORK PYTHON seconds repeats transitions endured
  code=0
  timeout --signal=TERM --kill-after=30 "$((left - 15))" bash -euo pipefail -c "$command" || code=$?
  case $code in
    0) ;;
    124 | 137 | 143) echo "stopped by the limit: $job goes on next time"; break ;;
    *) echo "failed ($code): $job" >&2; status=1 ;;
  esac
done
exit $status

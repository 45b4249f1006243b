#!/usr/bin/env bash
# Everything that waits for a GPU, most informative first, in slices that end before a time limit.
#
#   benchmarks/gpu_queue.sh                 every job that has no result yet, as far as the time goes
#   benchmarks/gpu_queue.sh --list          names of the jobs and whether they are done
#   DEVICE=cpu SCALE=cpu benchmarks/gpu_queue.sh     the same jobs in small, to try the queue
#
#   DEVICE   cuda or cpu (default: cuda)              SCALE    paper or cpu (default: paper)
#   LIMIT    seconds for this call (default: 540)     PYTHON   interpreter (default: python3)
#   RESULTS  folder of result files (default: benchmarks/results/gpu, in small benchmarks/results/gpu-SCALE-DEVICE)
#   WORK     folder of data sets and runs (default: gpu-work, likewise); keep it, and runs go on where they were
#   JOBS     names of the only jobs to do (default: all)
#   ARCHIVE  a .tar that gets all results at the end, and gives them back at the beginning (default: none); not the runs
#
# Paths are seen from the project's root. A job is done when its result file is there. A run that is stopped by the limit goes
# on from its checkpoint at the next call; other jobs that were stopped, or failed, are done anew, after those that were not
# tried yet. Needs what pyproject.toml lists, on PYTHONPATH or installed; the project itself need not be.
set -euo pipefail

cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} SCALE=${SCALE:-paper} LIMIT=${LIMIT:-540} PYTHON=${PYTHON:-python3}
small=
[ "$SCALE-$DEVICE" = paper-cuda ] || small=-$SCALE-$DEVICE # what was tried in small must not pass for done
RESULTS=${RESULTS:-benchmarks/results/gpu$small} WORK=${WORK:-gpu-work$small} ARCHIVE=${ARCHIVE:-}
deadline=$((SECONDS + LIMIT))
mkdir -p "$RESULTS" "$WORK/path"
RESULTS=$(realpath "$RESULTS") WORK=$(realpath "$WORK")
if [ -f "$ARCHIVE" ]; then tar -xf "$ARCHIVE" -C "$RESULTS" --skip-old-files; fi
pack() {
  if [ -n "$ARCHIVE" ]; then tar -cf "$ARCHIVE.part" -C "$RESULTS" . && mv "$ARCHIVE.part" "$ARCHIVE"; fi
}
[ "${1:-}" = --list ] || trap pack EXIT
for pair in om2p_data:om2p_data om2p_train:om2p_train om2p_cli:cli om2p_recipes:recipes; do
  ln -sfn "$PWD/${pair#*:}" "$WORK/path/${pair%%:*}" # the packages under the names they are installed by
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
rm -rf "$WORK"/path/om2p-*.dist-info && mkdir "$WORK/path/om2p-$version.dist-info" # what asks for the version finds it
printf 'Metadata-Version: 2.1\nName: om2p\nVersion: %s\n' "$version" > "$WORK/path/om2p-$version.dist-info/METADATA"
export PYTHONPATH="$WORK/path${PYTHONPATH:+:$PYTHONPATH}"
export MINARI_DATASETS_PATH="$WORK/datasets" OM2P_HOME="$WORK/behaviour"
export PYTHONUNBUFFERED=1

if [ "$SCALE" = paper ]; then
  precisions=full,tf32,bf16 seconds=1 repeats=5 transitions=1000000 endured=100000 long=330 short=150 begin=60
else
  precisions=full seconds=0.2 repeats=2 transitions=5000 endured=200 long=20 short=20 begin=20
fi

om2p() { # om2p data|train ARGUMENTS...
  "$PYTHON" -c "from om2p_cli.$1 import main; main()" "${@:2}"
}
bench() { # bench TASK [ARGUMENTS...]
  om2p train bench --env "$1" --device "$DEVICE" --scale "$SCALE" --seconds "$seconds" --repeats "$repeats" --quiet \
    --out "$RESULTS/.$job.json" "${@:2}"
  mv "$RESULTS/.$job.json" "$RESULTS/$job.json"
}
profile() { # where the time of an update goes
  "$PYTHON" -m om2p_train.bench.profile "$1" cn "$DEVICE" "$SCALE" "$RESULTS/.$job.txt" && mv "$RESULTS/.$job.txt" "$RESULTS/$job.txt"
}
endurance() { # memory over a long run
  "$PYTHON" -m om2p_train.bench.endurance "$1" cn "$DEVICE" "$SCALE" "$endured" "$RESULTS/.$job.json"
  mv "$RESULTS/.$job.json" "$RESULTS/$job.json"
}
cell() { # cell TASK TIER RECIPE: generate the data if need be, train, keep what a report needs
  local id="om2p/$1/$2-v0" runs="$WORK/runs/$1/$2/$3"
  if ! [ -d "$MINARI_DATASETS_PATH/$id" ]; then
    om2p data generate --env "$1" --tier "$2" --transitions "$transitions" --quiet
  fi
  om2p train run --dataset "$id" --algo "$3" --seeds 0-2 --scale "$SCALE" --device "$DEVICE" --resume --quiet \
    --no-tensorboard --out "$runs"
  "$PYTHON" -m om2p_train.bench.digest "$runs" "$RESULTS/$job.json"
}

imports() { # what is missing is better known at once
  "$PYTHON" - > "$RESULTS/.imports.txt" <<- 'END'
	import sys
	missing = []
	for name in ("torch", "numpy", "h5py", "numba", "scipy", "safetensors", "pydantic", "gymnasium", "minari", "pettingzoo",
	             "mujoco", "threadpoolctl", "typer", "tqdm", "jinja2", "matplotlib", "PIL", "pytest", "jax"):
	    try:
	        print(name, getattr(__import__(name), "__version__", "of no known version"))
	    except Exception as error:  # a package that is there and unfit raises what it likes
	        print(f"cannot be imported: {name}: {error}", file=sys.stderr)
	        missing += [name] * (name != "jax")
	sys.exit(bool(missing))
	END
  mv "$RESULTS/.imports.txt" "$RESULTS/imports.txt"
}

# NAME:SECONDS:COMMAND; it begins where so many seconds are left
jobs=("imports:20:imports" "tests:120:run_tests")
benches() { # benches NAME TASK SEEDS RECIPES...: one job each
  for recipe in "${@:4}"; do
    local peers=--no-latency
    [ "$recipe" = om2p ] && [ "$1" = cn ] && peers=
    jobs+=("bench-$1-$recipe:$long:bench $2 --recipes $recipe --seeds $3 --precision $precisions $peers")
  done
}
benches cn cn 1,5,10 om2p
for launch in 1 5 20 50; do
  [ "$SCALE" = paper ] || break
  jobs+=("launch-$launch:$short:bench cn --recipes om2p --seeds 1,5 --precision tf32 --no-peers --no-latency --set compute.updates_per_launch=$launch")
done
jobs+=(
  "derivative-zero:$short:bench cn --recipes om2p --seeds 1 --precision $precisions --no-peers --no-latency --set options.derivative='zero'"
  "profile-om2p:$short:profile om2p"
  "profile-omar:$short:profile omar"
)
benches cn cn 1,5,10 omar ma-fql
benches hc hc 1,5 om2p omar ma-fql
jobs+=("endurance-om2p:$long:endurance om2p")
for recipe in om2p omar ma-fql; do
  jobs+=("compiled-cn-$recipe:$long:bench cn --recipes $recipe --precision full,tf32 --seeds 1,5 --no-peers --no-latency --set compute.compile=true")
done
benches cn cn 1,5,10 om2p-paper ma-cql ma-sfbc vgm2p bc
benches hc hc 1,5 om2p-paper ma-cql ma-sfbc vgm2p
for recipes in "om2p om2p-paper bc-flow om2p-released" "ma-fql omar bc ma-cql vgm2p ma-sfbc"; do
  for tier in expert medium; do
    for recipe in $recipes; do
      jobs+=("cell-cn-$tier-$recipe:$begin:cell cooperative-navigation $tier $recipe")
      jobs+=("cell-hc-$tier-$recipe:$begin:cell halfcheetah-2x3 $tier $recipe")
    done
  done
done

run_tests() { # the fast path is the plain path
  "$PYTHON" -m pytest -q -p no:cacheprovider tests/train/test_capture.py > "$RESULTS/.tests.txt" && mv "$RESULTS/.tests.txt" "$RESULTS/tests.txt"
}

for name in ${JOBS:-}; do
  [[ " ${jobs[*]%%:*} " == *" $name "* ]] || { echo "error: JOBS names $name; --list shows the jobs" >&2; exit 2; }
done

fresh=() tried=()
for entry in "${jobs[@]}"; do
  if [ -e "$RESULTS/.${entry%%:*}.tried" ]; then tried+=("$entry"); else fresh+=("$entry"); fi
done

status=0
for entry in "${fresh[@]}" "${tried[@]}"; do
  IFS=: read -r job needed command <<< "$entry"
  [ -z "${JOBS:-}" ] || [[ " $JOBS " == *" $job "* ]] || continue
  if compgen -G "$RESULTS/$job.*" > /dev/null; then
    [ "${1:-}" = --list ] && echo "done     $job"
    continue
  fi
  [ "${1:-}" = --list ] && { echo "waiting  $job"; continue; }
  left=$((deadline - SECONDS))
  [ "$left" -gt 20 ] || { echo "out of time before $job"; break; }
  [ "$left" -gt "$needed" ] || { echo "too little time for $job ($left s left of $needed)"; continue; }
  echo "== $job ($left s left)"
  [[ $job == cell-* ]] || touch "$RESULTS/.$job.tried"
  export -f om2p bench profile endurance cell imports run_tests
  export job DEVICE SCALE RESULTS WORK PYTHON seconds repeats transitions endured
  code=0
  # TERM lets a run write its checkpoint: the shell waits for it, with a trap of its own.
  timeout --signal=TERM --kill-after=30 "$((left - 15))" bash -euo pipefail -c "trap : TERM; $command" || code=$?
  case $code in
    0) rm -f "$RESULTS/.$job.tried" ;;
    *)
      [ "$SECONDS" -lt "$((deadline - 20))" ] || { echo "stopped by the limit: $job goes on next time"; break; }
      echo "failed ($code): $job" >&2
      status=1
      ;;
  esac
done
exit $status

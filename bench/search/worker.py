"""The parent's end of a method's process: started, asked line by line, ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path

from bench.machine import ROOT

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
SETUP_SECONDS = 1_800.0
ROUND_SECONDS = 120.0


class WorkerFailed(Exception):
    """A method's process ended or fell silent; the message carries its last words."""


class Worker:
    """A process of `bench.search.process` or `bench.search.inside`, on the interpreter given."""

    def __init__(self, python: Path, module: str, request: dict) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  until close
        self._process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            text=True,
        )

    def answer(self, seconds: float) -> dict:
        """The next line that the process writes."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self.close()
            raise WorkerFailed(f"no answer within {seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerFailed(f"ended with code {code}: {self._last_words()}")
        return json.loads(line)

    def ask(self, command: dict, seconds: float = ROUND_SECONDS) -> dict:
        """The answer to one command."""
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            code = self._process.wait()
            raise WorkerFailed(f"ended with code {code}: {self._last_words()}") from None
        return self.answer(seconds)

    def close(self) -> None:
        """Ends the process, by its end of input, or by its number if it does not listen."""
        if self._process.poll() is None:
            try:
                self._process.communicate(timeout=10)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else "it said nothing"

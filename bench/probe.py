"""One measurement in a process of its own: `python -m bench.probe TASK REQUEST`, started by bench.brain.

REQUEST is JSON: settings, options of the task, and when the parent started this process. The answer is one JSON
object on standard output. Nothing is imported before the clock is read, because imports are measured too.
"""

import time

FIRST_LINE_NS = time.perf_counter_ns()

import json
import sys


def main() -> int:
    """Run the task that the command line names."""
    task, request = sys.argv[1], json.loads(sys.argv[2])
    settings, options = request["settings"], request["options"]
    if task == "open":
        from bench.footprint import probe_open

        answer = probe_open(settings, options, FIRST_LINE_NS, request["started_ns"])
    elif task == "memory":
        from bench.footprint import probe_memory

        answer = probe_memory(settings, options)
    else:
        from bench.timing import TASKS

        answer = TASKS[task](settings, options)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())

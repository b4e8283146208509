"""One measurement in a process of its own: `python -m bench.probe TASK REQUEST`, started by bench.brain.

REQUEST is JSON: settings, options of the task, and when the parent started this process. The answer is one JSON
object on standard output. Where imports are measured, the brain is imported first, so that it pays for all it needs.
"""

import importlib
import sys
import time


def main() -> int:
    """Run the task that the command line names."""
    task = sys.argv[1]
    import_started_ns = time.perf_counter_ns()
    if task == "open":
        importlib.import_module("omega_edge.brain")
    imported_ns = time.perf_counter_ns()
    import json

    request = json.loads(sys.argv[2])
    settings, options = request["settings"], request["options"]
    if task == "open":
        from bench.footprint import probe_open

        answer = probe_open(settings, options)
        answer["import_and_open_ms"] = answer["open_ms"] + (imported_ns - import_started_ns) / 1e6
        answer["interpreter_start_ms"] = (import_started_ns - request["started_ns"]) / 1e6
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

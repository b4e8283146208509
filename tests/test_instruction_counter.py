"""toolchain/count_instructions: marks read with suspicion, limits that hold, and a count that is exact."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolchain.instruction_counter.__main__ import goals, main, table
from toolchain.instruction_counter.counting import (
    COMPILER,
    CPUS,
    EMULATOR,
    HERE,
    ONE_THREAD,
    ToolMissing,
    build_plugin,
    check_tools,
    check_wheel_is_present,
    compile_flags,
    emulate,
    make_inputs,
)
from toolchain.instruction_counter.limits import CALLS, KERNELS, Comparison, Count, Limits, LimitsError
from toolchain.instruction_counter.marks import (
    CountError,
    expect_equal_outputs,
    expect_same_marks,
    read_calls,
    read_kernels,
    read_marks,
)

PROJECT = Path(__file__).resolve().parent.parent
COMMAND = PROJECT / "toolchain/count_instructions"
A53 = CPUS[0]


def run(*options: str | Path, path: str | None = None, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """The command, as a person types it."""
    environment = os.environ | ({} if path is None else {"PATH": path})
    return subprocess.run(
        [COMMAND, *options],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class TestMarks:
    def test_counts_are_gathered_by_the_mark_that_closes_them(self) -> None:
        text = "mark 0 5 1\nmark 1 8 1\nmark 0 900 1\nmark 2 30 1\nmark 0 7 1\nmark 1 9 1\n"
        assert read_marks(text) == {1: [8, 9], 2: [30]}
        assert read_marks("") == {}

    def test_threads_between_counts_do_not_matter(self) -> None:
        assert read_marks("mark 0 5 4\nmark 1 8 1\n") == {1: [8]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("mark 1 8 1\n", "line 1: expected a mark that opens a count, got mark 1"),
            ("mark 0 5 1\nmark 0 5 1\n", "line 2: expected the mark that closes the count, got mark 0"),
            ("mark 0 5 1\nmark 1 8 1\nmark 1 8 1\n", "line 3: expected a mark that opens"),
            ("mark 0 5 1\nmark 1 8 1\nmark 0 5 1\n", "never closed"),
            ("mark 0 5 1\nmark 1 8 2\n", "expected one thread during count 1, got 2"),
            ("mark 0 5 1\nmark 1 8\n", "line 2: expected 'mark NUMBER COUNT THREADS', got 'mark 1 8'"),
            ("mark 0 5 1\nmark 1 -8 1\n", "line 2"),
            ("mark 0 5 1\nmark 1 8e3 1\n", "line 2"),
            ("mark 0 5 1\nmark 1 ٨ 1\n", "line 2"),
            ("mark 0 5 1\nmark 1 8 1 mark 2\n", "line 2"),
            ("mark 0 5 1\nmark 1 " + "9" * 5000 + " 1\n", "line 2"),
            ("\nmark 0 5 1\n", "line 1"),
            ("mark 0 5 1\nma\ufffd\x00\n", "line 2"),
        ],
    )
    def test_a_count_that_is_not_certain_is_an_error(self, text: str, message: str) -> None:
        with pytest.raises(CountError) as raised:
            read_marks(text)
        assert message in str(raised.value)
        assert len(str(raised.value)) < 300

    def test_a_mark_of_nobody_and_a_kernel_that_was_not_counted_are_errors(self) -> None:
        expect_same_marks([1, 2], {2: [5], 1: [4]})
        with pytest.raises(CountError, match=r"announced and not counted: marks \[2\]; .*not announced: marks \[3\]"):
            expect_same_marks([1, 2], {1: [5], 3: [4]})

    def test_announced_kernels(self) -> None:
        line = "count 1 search neon vector 10000 8a0e69653328f15d\n"
        (kernel,) = read_kernels(line)
        assert (kernel.mark, kernel.kernel, kernel.isa, kernel.per, kernel.units) == (
            1,
            "search",
            "neon",
            "vector",
            10_000,
        )
        for damaged in ("", line + line, line.replace("10000", "0"), line + "count 2\n", line.replace(" 1 ", " 0 ")):
            with pytest.raises(CountError):
                read_kernels(damaged)

    def test_announced_calls(self) -> None:
        assert read_calls("count 1 nothing\ncount 2 observe\n") == {1: "nothing", 2: "observe"}
        for damaged in ("", "count 1 nothing\ncount 1 observe\n", "count 0 nothing\n", "Traceback\n"):
            with pytest.raises(CountError):
                read_calls(damaged)

    def test_kernels_that_answer_differently_are_an_error(self) -> None:
        named = enumerate(("search neon", "fuse neon", "search scalar"), start=1)
        lines = "".join(f"count {mark} {name} vector 10 {{:016x}}\n" for mark, name in named)
        expect_equal_outputs(read_kernels(lines.format(7, 8, 7)))
        with pytest.raises(CountError, match="search: neon and scalar answer differently"):
            expect_equal_outputs(read_kernels(lines.format(7, 8, 8)))


def kernel_count(value: float, name: str = "search", cpu: str = A53) -> Count:
    return Count(KERNELS, name, cpu, value, isa="neon", per="vector")


LIMITS = Limits({KERNELS: {f"search {A53}": 100.0}, CALLS: {f"recommend {A53}": 1_000_000}}, {"compiler": "one"})


class TestLimits:
    @pytest.mark.parametrize(
        ("value", "holds"), [(100.0, True), (102.0, True), (102.01, False), (50.0, True), (1e9, False)]
    )
    def test_a_rise_over_two_percent_fails(self, value: float, holds: bool) -> None:
        assert LIMITS.compare([kernel_count(value)], [A53]).holds is holds

    def test_a_rise_tells_both_numbers_and_the_percentage(self) -> None:
        compared = LIMITS.compare([Count(CALLS, "recommend", A53, 1_050_000, span=0.0)], [A53])
        assert compared == Comparison(
            risen=("recommend cortex-a53: 1,000,000 -> 1,050,000 instructions (+5.0 %)",), missing=(), fallen=()
        )

    def test_a_fall_is_told_and_does_not_fail(self) -> None:
        compared = LIMITS.compare([kernel_count(90.0)], [A53])
        assert compared.holds
        assert compared.fallen == ("search cortex-a53: 100.0 -> 90.0 instructions (-10.0 %)",)
        assert LIMITS.compare([kernel_count(98.5)], [A53]).fallen == ()

    def test_a_count_without_a_limit_fails(self) -> None:
        compared = LIMITS.compare([kernel_count(100.0), kernel_count(7.0, "fuse")], [A53])
        assert not compared.holds
        assert [text.split(":")[0] for text in compared.missing] == ["fuse cortex-a53"]

    def test_a_limit_without_a_count_fails_unless_it_was_not_to_be_counted(self) -> None:
        other = kernel_count(5.0, cpu=CPUS[1])
        limits = LIMITS.updated([other], {}, [CPUS[1]])
        assert not limits.compare([other], [A53, CPUS[1]]).holds
        assert limits.compare([other], [CPUS[1]]).holds

    def test_an_update_replaces_what_was_counted_and_nothing_else(self) -> None:
        renamed = LIMITS.updated([kernel_count(7.0, "find")], {"compiler": "two"}, [A53])
        assert renamed.values == {KERNELS: {f"find {A53}": 7.0}, CALLS: LIMITS.values[CALLS]}
        assert renamed.counted_with == {"compiler": "two"}
        more = LIMITS.updated([kernel_count(7.0, cpu=CPUS[2])], {}, [CPUS[2]])
        assert more.values[KERNELS] == {f"search {A53}": 100.0, f"search {CPUS[2]}": 7.0}

    def test_the_file_keeps_them(self, tmp_path: Path) -> None:
        path = tmp_path / "limits.json"
        assert Limits.read(path).values == {KERNELS: {}, CALLS: {}}
        LIMITS.write(path)
        again = Limits.read(path)
        assert (again.values, again.counted_with) == (LIMITS.values, LIMITS.counted_with)
        assert len(path.read_text().splitlines()) == 11  # one a limit, so that a change shows as one line

    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "[]",
            "{}",
            '{"counted_with": {}, "instructions": [], "instructions_per_vector": {}}',
            '{"counted_with": {}, "instructions": {"a": "5"}, "instructions_per_vector": {}}',
            '{"counted_with": {}, "instructions": {"a": true}, "instructions_per_vector": {}}',
            '{"counted_with": {}, "instructions": {"a": NaN}, "instructions_per_vector": {}}',
            '{"counted_with": {}, "instructions": {"a": Infinity}, "instructions_per_vector": {}}',
            '{"counted_with": {}, "instructions": {"a": 0}, "instructions_per_vector": {}}',
            '{"counted_with": {"a": 1}, "instructions": {}, "instructions_per_vector": {}}',
        ],
    )
    def test_a_damaged_file_is_refused(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "limits.json"
        path.write_text(damage)
        with pytest.raises(LimitsError, match=r"limits\.json"):
            Limits.read(path)

    def test_the_committed_file_is_sound_and_of_known_processors(self) -> None:
        limits = Limits.read(PROJECT / "toolchain/instruction_limits.json")
        for metric in (KERNELS, CALLS):
            assert {key.split()[-1] for key in limits.values[metric]} == set(CPUS)
        assert limits.counted_with.keys() == {"compiler", "emulator"}


class TestCommand:
    def test_json_lines_have_the_fields_of_their_metric(self) -> None:
        assert kernel_count(99.5).line() == {
            "metric": "instructions_per_vector",
            "kernel": "search",
            "isa": "neon",
            "cpu": "cortex-a53",
            "value": 99.5,
            "per": "vector",
        }
        assert Count(CALLS, "observe", A53, 5, span=0.0123456).line() == {
            "metric": "instructions",
            "call": "observe",
            "cpu": "cortex-a53",
            "value": 5,
            "span": 0.0123,
        }

    def test_the_table_shows_the_change_from_the_limit(self) -> None:
        counts = [kernel_count(103.0), kernel_count(7.0, "fuse")]
        title, search, fuse = table(counts, LIMITS, [A53])
        assert title.split() == ["instructions", "cortex-a53", "neon"]
        assert search.split() == ["search", "per", "vector", "103.0", "+3.0%"]
        assert fuse.split() == ["fuse", "per", "vector", "7.0", "no", "limit"]

    def test_goals_are_told_as_met_or_not_by_the_best_kernel(self) -> None:
        counts = [kernel_count(150.0), kernel_count(120.0, "search_halves"), kernel_count(39.0, "search_two_stage")]
        exact, two_stage = goals([*counts, kernel_count(1.0, "fuse")])
        assert (
            "exact search on cortex-a53: 120.0 of at most 100 (search_halves, neon): not met, 1.20 times as many"
            in exact
        )
        assert "39.0 of at most 40 (search_two_stage, neon): met" in two_stage

    @pytest.mark.parametrize(
        "options", [["--jsn"], ["--cpu", "cortex-a55"], ["--check", "--update"], ["kernels"], ["--kern"], ["--cpu"]]
    )
    def test_unknown_options_are_errors(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(options)
        assert ended.value.code == 2
        assert "usage: toolchain/count_instructions" in capsys.readouterr().err

    def test_it_runs_from_any_folder_and_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "toolchain").mkdir()  # a folder of the same name there is not taken for ours
        link = tmp_path / "count"
        link.symlink_to(COMMAND)
        done = subprocess.run([link, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: toolchain/count_instructions")

    def test_missing_programs_are_named_in_one_line(self, tmp_path: Path) -> None:
        for tool in ("bash", "dirname", "readlink", "env"):
            (tmp_path / tool).symlink_to(shutil.which(tool))
        done = run("--kernels", path=str(tmp_path))
        assert done.returncode == 69
        (line,) = done.stderr.splitlines()
        install = "apt-get install -y --no-install-recommends "
        assert install in line
        assert {"qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "gcc"} <= set(
            line.partition(install)[2].split()
        )

    def test_a_damaged_file_of_limits_stops_before_anything_is_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "limits.json"
        path.write_text("{")
        done = run("--kernels", "--limits", path)
        assert (done.returncode, done.stdout) == (70, "")
        (line,) = done.stderr.splitlines()
        assert "limits.json" in line

    def test_the_flags_are_those_of_the_extension(self) -> None:
        assert {"-O3", "-ffp-contract=off", "-march=armv8-a"} <= set(compile_flags())


def test_a_wheel_of_other_sources_is_not_counted(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    shutil.copytree(PROJECT / "omega_edge", installed / "omega_edge", ignore=shutil.ignore_patterns("__pycache__"))
    check_wheel_is_present(tmp_path)
    os.utime(installed, (0, 0))
    with pytest.raises(ToolMissing, match=r"made before omega_edge/_simd/\w+\.\w+ was changed; ./check --aarch64"):
        check_wheel_is_present(tmp_path)
    os.utime(installed)
    (installed / "omega_edge/brain.py").write_text("")
    with pytest.raises(ToolMissing, match=r"made before omega_edge/brain\.py was changed"):
        check_wheel_is_present(tmp_path)
    (installed / "omega_edge/brain.py").unlink()
    with pytest.raises(ToolMissing, match=r"omega_edge/brain\.py"):
        check_wheel_is_present(tmp_path)


HAS_TOOLS = all(shutil.which(program) for program in (EMULATOR, COMPILER, "gcc", "setarch"))
needs_tools = pytest.mark.skipif(
    not HAS_TOOLS, reason=f"needs {EMULATOR} and {COMPILER}, as ./check --aarch64 has them"
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("plugin"))


def compiled(source: Path, program: Path, *flags: str) -> Path:
    subprocess.run([COMPILER, "-static", *flags, f"-I{HERE}", "-o", program, source], check=True)
    return program


@needs_tools
class TestCounter:
    @pytest.mark.parametrize("cpu", CPUS)
    def test_a_program_of_known_length_is_counted_exactly(self, plugin: Path, tmp_path: Path, cpu: str) -> None:
        program = compiled(HERE / "known_length.S", tmp_path / "known_length", "-nostdlib")
        # Read from the source: see its first lines.
        assert emulate(plugin, cpu, [program]) == ("", {1: [3 + 5], 2: [2 + 3 * 1_000_000 + 5]})

    def test_the_mark_of_c_programs_costs_four_to_six_instructions(self, plugin: Path, tmp_path: Path) -> None:
        source = tmp_path / "empty.c"
        source.write_text(
            '#include "mark.h"\nint main(void) { omega_mark(OMEGA_MARK_OPENS); omega_mark(1); return 0; }\n'
        )
        _, counts = emulate(plugin, A53, [compiled(source, tmp_path / "empty", "-O2")])
        assert 4 <= counts[1][0] <= 6

    @pytest.mark.parametrize(
        "body",
        [
            "omega_mark(0); START; END; omega_mark(1);",
            "START; omega_mark(0); omega_mark(1); END;",
        ],
        ids=["lives and ends in between", "lives before and after"],
    )
    def test_a_second_thread_makes_the_count_an_error(self, plugin: Path, tmp_path: Path, body: str) -> None:
        source = tmp_path / "threads.c"
        source.write_text(
            '#include <pthread.h>\n#include "mark.h"\n'
            "static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;\n"
            "static void *waits(void *a) { pthread_mutex_lock(&m); return a; }\n"
            "#define START pthread_create(&t, 0, waits, 0)\n"
            "#define END pthread_mutex_unlock(&m), pthread_join(t, 0)\n"
            f"int main(void) {{ pthread_t t; pthread_mutex_lock(&m); {body} return 0; }}\n"
        )
        with pytest.raises(CountError, match="expected one thread during count 1, got 2"):
            emulate(plugin, A53, [compiled(source, tmp_path / "threads", "-O2", "-pthread")])

    @pytest.mark.parametrize(
        ("ending", "message"),
        [("return 0", "never closed"), ("return 3", "ended with code 3"), ("__builtin_trap()", "code")],
    )
    def test_a_program_that_ends_in_the_midst_is_an_error(
        self, plugin: Path, tmp_path: Path, ending: str, message: str
    ) -> None:
        source = tmp_path / "ends.c"
        source.write_text(f'#include "mark.h"\nint main(void) {{ omega_mark(0); {ending}; }}\n')
        with pytest.raises(CountError, match=message):
            emulate(plugin, A53, [compiled(source, tmp_path / "ends", "-O2")])

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("", "expected the argument out=FILE"),
            (",out=", "expected out=FILE"),
            (",out=a,speed=9", "expected out=FILE, got speed=9"),
        ],
    )
    def test_the_plugin_refuses_other_arguments(
        self, plugin: Path, tmp_path: Path, argument: str, message: str
    ) -> None:
        command = [EMULATOR, "-plugin", f"file={plugin}{argument}", "nothing"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode != 0
        assert message in done.stderr

    def test_a_missing_python_for_arm64_says_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(ToolMissing, match=r"check --aarch64 makes it, --kernels counts without it"):
            check_tools(tmp_path)

    def test_an_emulator_without_plugins_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        static = tmp_path / EMULATOR
        static.write_text("#!/bin/sh\necho usage: -cpu -L\n")
        static.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(ToolMissing, match=r"takes no plugins; .*qemu-user"):
            check_tools(None)


HAS_BUILD = all((PROJECT / path).exists() for path in ("build/movietweetings-70k.bundle", "build/model"))
needs_build = pytest.mark.skipif(not HAS_BUILD, reason="build/ is empty: ./check fills it")


@needs_build
def test_the_counted_calls_do_their_work_on_this_machine_too(tmp_path: Path) -> None:
    make_inputs(tmp_path, "calls")
    shutil.copytree(tmp_path / "full", tmp_path / "storage")
    done = subprocess.run(
        [sys.executable, "-P", HERE / "counted_calls.py", tmp_path / "request.json"],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {"nothing", "observe", "recommend", "vector_search", "embed_16_tokens"} <= set(
        read_calls(done.stdout).values()
    )


@pytest.fixture(scope="module")
def counted_limits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Limits written by a run of the kernels on one processor."""
    path = tmp_path_factory.mktemp("limits") / "limits.json"
    done = run("--kernels", "--cpu", A53, "--update", "--limits", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.with_aarch64
@needs_tools
@needs_build
class TestWholeRun:
    def test_counts_repeat_to_the_last_instruction(self, counted_limits: Path) -> None:
        done = run("--kernels", "--cpu", A53, "--check", "--json", "--limits", counted_limits)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(text) for text in done.stdout.splitlines()]
        accepted = Limits.read(counted_limits).values[KERNELS]
        assert {f"{line['kernel']} {line['cpu']}": line["value"] for line in lines} == accepted
        assert {line["metric"] for line in lines} == {KERNELS}
        assert all(line["value"] == line["limit"] for line in lines)

    def test_a_lowered_limit_fails_with_both_numbers_and_a_raised_one_advises(
        self, counted_limits: Path, tmp_path: Path
    ) -> None:
        content = json.loads(counted_limits.read_text())
        (risen, value), (fallen, other), *_ = content[KERNELS].items()
        lower, higher = round(value / 1.05, 3), round(other / 0.95, 3)
        content[KERNELS] |= {risen: lower, fallen: higher}
        changed = tmp_path / "limits.json"
        changed.write_text(json.dumps(content))
        done = run("--kernels", "--cpu", A53, "--check", "--limits", changed)
        assert done.returncode == 1
        assert f"{risen}: {lower:,} -> {value:,} instructions (+5.0 %)" in done.stderr
        assert "lower the limits by --update" in done.stderr
        assert f"{fallen}: {higher:,} -> {other:,} instructions (-5.0 %)" in done.stderr

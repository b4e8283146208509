"""The command line `omega-edge`: arguments, exit codes, and nothing else.

What a verb does is in cli_verbs.py, doctor.py and demo.py, imported only when the verb runs: `--help` answers without
loading numpy. Data goes to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from omega_edge import errors
from omega_edge.cli_codes import (
    EXIT_BROKEN_PIPE,
    EXIT_CODES_TEXT,
    EXIT_INTERRUPTED,
    EXIT_IO,
    EXIT_OK,
    EXIT_USAGE,
    exit_code_of,
)
from omega_edge.cli_process import end_on_fault, flush_output, let_go, occupy_standard_streams, say_error

OPTIONS_TEXT = """\
options come from flags, then OMEGA_* variables (OMEGA_STORAGE_PATH), then the TOML file that --config or
OMEGA_CONFIG names (else ~/.config/omega-edge/config.toml, /etc/omega-edge/config.toml), then defaults;
`omega-edge config show` tells which. NO_COLOR turns colour off.

errors are one line of text on standard error, with --json too."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        try:
            super().error(message)
        except OSError:
            # Standard error takes nothing; the exit code still tells.
            let_go(sys.stderr)
            raise SystemExit(EXIT_USAGE) from None

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        # As argparse does it, but for newer versions of it that drop an error of the write: help that nobody got must
        # not end with 0.
        if message:
            (file or sys.stderr).write(message)


def _shared_flags() -> argparse.ArgumentParser:
    """Flags that every verb has."""
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("where things are")
    group.add_argument("--config", type=Path, metavar="FILE", help="TOML file with options")
    group.add_argument("--storage", type=Path, metavar="DIR", help="folder of the household's memory")
    group.add_argument("--catalog", type=Path, metavar="FILE", help="catalogue bundle")
    group.add_argument("--model", type=Path, metavar="DIR", help="folder of the text model, or none")
    group.add_argument("--time-zone", metavar="NAME", help="IANA name, such as Europe/Berlin")
    shared.add_argument("--json", action="store_true", help="print JSON")
    return shared


def _moment_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--profile", default="household", metavar="ID", help="who watches (default: household)")
    verb.add_argument(
        "--at", metavar="TIME", help="moment, as 2026-03-01T20:15 (local), with an offset, or Unix ms (default: now)"
    )
    verb.add_argument("--mood", metavar="GENRE", help="a genre of the catalogue that is wanted now")


def _add_recommending(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    verb = verbs.add_parser("recommend", parents=[shared], help="what to watch now, with reasons")
    _moment_flags(verb)
    verb.add_argument("-k", "--count", type=int, default=20, metavar="N", help="titles to show (default: 20)")

    verb = verbs.add_parser("explain", parents=[shared], help="why a title is offered at its score, or withheld")
    verb.add_argument("content_id", metavar="CONTENT_ID")
    _moment_flags(verb)

    verb = verbs.add_parser(
        "observe",
        parents=[shared],
        help="record a viewing, or JSON lines of viewings from standard input",
        formatter_class=_Formatter,
        description=OBSERVE_TEXT,
    )
    verb.add_argument("--content-id", metavar="ID", help="what was watched; without it, standard input is read")
    verb.add_argument("--title", metavar="TEXT", help="its name (default: the catalogue's)")
    verb.add_argument("--watched", type=float, metavar="SHARE", help="share watched, 0 to 1")
    verb.add_argument("--duration", type=int, metavar="SECONDS", help="seconds watched")
    _moment_flags(verb)

    verb = verbs.add_parser("feedback", parents=[shared], help="say what you think of a title")
    verb.add_argument("content_id", metavar="CONTENT_ID")
    verb.add_argument("kind", choices=("like", "dislike", "not_now", "never"))
    verb.add_argument("--profile", default="household", metavar="ID", help="who says so (default: household)")
    verb.add_argument("--title", metavar="TEXT", help="its name; needed for a title outside the catalogue")

    verb = verbs.add_parser("onboard", parents=[shared], help="titles for a new home to pick its favourites from")
    verb.add_argument("--pick", nargs="+", metavar="ID", help="take these as favourites; three to five tell most")
    verb.add_argument("--profile", default="household", metavar="ID", help="who picks (default: household)")
    verb.add_argument("-k", "--count", type=int, default=24, metavar="N", help="titles to show (default: 24)")

    profile = verbs.add_parser("profile", help="who watches: list them, or add or change one")
    actions = profile.add_subparsers(dest="action", required=True, metavar="list|set")
    actions.add_parser("list", parents=[shared], help="all profiles of the household")
    verb = actions.add_parser("set", parents=[shared], help="add a profile or change it")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--name", required=True, metavar="TEXT")
    verb.add_argument(
        "--max-age-rating", type=int, metavar="YEARS", help="highest age rating shown (default: no limit)"
    )


OBSERVE_TEXT = """Record one viewing by flags, or many as JSON lines on standard input. Each line is one object:

  {"content_id": "2543164", "watch_percentage": 0.9, "duration_seconds": 6300,
   "timestamp": 1488400000000, "content_title": "Arrival (2016)", "profile": "household",
   "context": {"time_of_day": "evening", "day_of_week": 4, "mood_hint": "Sci-Fi"}}

content_id, watch_percentage and duration_seconds are required; the rest is taken from now, the catalogue and the
flags. A line that cannot be used is reported with its number and left out; the exit code is then 65."""


def _add_keeping(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser, sync: argparse.ArgumentParser) -> None:
    verb = verbs.add_parser("export", parents=[shared], help="everything stored about the household, as JSON")
    verb.add_argument("--out", type=Path, metavar="FILE", help="write there, whole or not at all (default: print)")

    verb = verbs.add_parser("import", parents=[shared], help="take back an export")
    verb.add_argument("file", metavar="FILE", help="a file that export wrote, or - for standard input")
    verb.add_argument("--replace", action="store_true", help="put it in the place of what is stored now")

    verb = verbs.add_parser("forget", parents=[shared], help="erase a title, a profile or everything, for good")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--title", metavar="CONTENT_ID", help="every record of this title")
    what.add_argument("--profile", metavar="ID", help="a profile and all it watched")
    what.add_argument("--everything", action="store_true", help="all that is stored about the household")
    verb.add_argument("--yes", action="store_true", help="needed with --everything")

    verbs.add_parser("stats", parents=[shared], help="what is stored, the configuration in force, what is degraded")
    verbs.add_parser("doctor", parents=[shared], help="check core, catalogue, model, store and disk; changes nothing")
    config = verbs.add_parser("config", help="options in force and where each comes from")
    actions = config.add_subparsers(dest="action", required=True, metavar="show")
    actions.add_parser("show", parents=[shared, sync], help="every option, its value and its origin")


SYNC_TEXT = """Speak to the shard once: send what the sharing mode lets leave the home, take in what all homes taught.

  receive   nothing derived from viewing leaves the television (the default)
  counts    once a day one deliberately falsified title
  titles    the titles finished, in order: this is your viewing history

With --watch it goes on at the shard's interval until it is interrupted; it then holds the store. The exit code is 69 if no
shard answers, 75 if it asks to wait, 78 if it does not know this home, 65 if its answer cannot be used."""


def _sync_flags() -> argparse.ArgumentParser:
    """Flags of the verbs that have to do with sharing."""
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("what is shared, and with whom")
    group.add_argument("--sharing", metavar="MODE", help="receive, counts or titles")
    group.add_argument("--constellation-url", metavar="URL", help="the shard, or none")
    group.add_argument(
        "--catalog-keys", type=Path, metavar="FILE", help="who may sign a new catalogue bundle, or none: keep this one"
    )
    return flags


def _add_sync(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser, sync: argparse.ArgumentParser) -> None:
    verb = verbs.add_parser(
        "sync",
        parents=[shared, sync],
        help="speak to the shard, once or at its interval",
        formatter_class=_Formatter,
        description=SYNC_TEXT,
    )
    verb.add_argument("--watch", action="store_true", help="go on until interrupted")


def _add_demo(verbs: argparse._SubParsersAction, shared: argparse.ArgumentParser) -> None:
    verb = verbs.add_parser("demo", parents=[shared], help="replay a real household and show what comes of it")
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="data set (default: MovieTweetings 70K of the source tree)"
    )
    verb.add_argument("--household", metavar="ID", help="household of the data set to replay")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="omega-edge",
        description="Recommends television on the television.",
        epilog=f"{OPTIONS_TEXT}\n\n{EXIT_CODES_TEXT}",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    shared, sync = _shared_flags(), _sync_flags()
    _add_demo(verbs, shared)
    _add_recommending(verbs, shared)
    _add_sync(verbs, shared, sync)
    _add_keeping(verbs, shared, sync)
    return parser


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What argparse cannot say: flags that need each other."""
    if options.verb is None:
        parser.error("expected a verb; see omega-edge --help")
    if options.verb == "forget" and options.everything and not options.yes:
        parser.error("forget --everything erases all that is stored about the household: add --yes")
    if options.verb == "forget" and options.yes and not options.everything:
        parser.error("forget --yes: expected --everything beside it")
    if options.verb == "observe":
        single = {"--watched": options.watched, "--duration": options.duration}
        if options.content_id is None:
            given = [flag for flag, value in {**single, "--title": options.title}.items() if value is not None]
            if given:
                parser.error(f"observe {given[0]}: expected --content-id beside it")
            if sys.stdin is None or sys.stdin.isatty():
                parser.error("observe: expected --content-id, or JSON lines on standard input")
        else:
            missing = [flag for flag, value in single.items() if value is None]
            if missing:
                parser.error(f"observe --content-id: expected {' and '.join(missing)} beside it")
    if options.verb in ("recommend", "onboard") and options.count < 1:
        parser.error(f"{options.verb} --count: expected 1 or more, got {options.count}")


def _run(options: argparse.Namespace) -> int:
    if options.verb == "doctor":
        from omega_edge import doctor

        return doctor.run(options)
    if options.verb == "demo":
        from omega_edge import demo

        return demo.run(options)
    from omega_edge import cli_verbs

    return cli_verbs.run(options)


def _answer(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
        if not options.version:
            _check_usage(parser, options)
    except SystemExit as ended:
        # argparse has printed the help, or what is wrong with the command line.
        return ended.code
    if options.version:
        from omega_edge import __version__

        print(f"omega-edge {__version__}")
        return EXIT_OK
    return _run(options)


def _guarded(arguments: Sequence[str] | None) -> int:
    """The answer's exit code, with every error that is foreseen told in one line."""
    try:
        return _answer(arguments)
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        say_error("interrupted")
        return EXIT_INTERRUPTED
    except (errors.OmegaError, OSError) as error:
        say_error(_in_words(error))
        return exit_code_of(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. An exception that leaves it is an internal fault (EXIT_OTHER)."""
    sys.excepthook = end_on_fault
    occupy_standard_streams()
    if sys.stdout is None:
        say_error("standard output is closed: expected somewhere to answer to, such as /dev/null; nothing was done")
        return EXIT_IO
    code = _guarded(arguments)
    unwritten = flush_output()
    if isinstance(unwritten, BrokenPipeError):
        return EXIT_BROKEN_PIPE if code == EXIT_OK else code
    if unwritten is not None and code == EXIT_OK:
        say_error(f"standard output: {_in_words(unwritten)}")
        return EXIT_IO
    return code


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


if __name__ == "__main__":
    sys.exit(main())

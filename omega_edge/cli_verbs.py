"""What the verbs of `omega-edge` do with an open brain. Thin: arguments to messages, results to JSON or text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from omega_edge.brain import Explanation
from omega_edge.cli_codes import EXIT_OK
from omega_edge.cli_export import export
from omega_edge.cli_observe import observe
from omega_edge.cli_output import Screen, as_plain, counted, fit, in_minutes, write_json
from omega_edge.cli_session import open_brain, parse_moment, require_file
from omega_edge.config import SHARING_WORDS, BrainConfig
from omega_edge.configuration import Setting, brain_config, settings_of
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    Profile,
    Recommendation,
    ViewContext,
)

MAX_IMPORT_BYTES = 512 * 1024 * 1024


def run(options: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    settings = settings_of(options)
    if options.verb == "config":
        return _show_settings(options, settings)
    config = brain_config(settings)
    if options.verb == "profile":
        return {"list": _list_profiles, "set": _set_profile}[options.action](options, config)
    return _VERBS[options.verb](options, config)


# Recommending ----------------------------------------------------------------------------------------------


def _recommend(options: argparse.Namespace, config: BrainConfig) -> int:
    moment = parse_moment(options.at, config.zone())
    with open_brain(config, moment) as brain:
        context = brain.now_context(options.profile, options.mood)
        rows = brain.recommend(context, options.count)
    if options.json:
        write_json({"profile": options.profile, "context": context, "recommendations": rows})
        return EXIT_OK
    screen = Screen(sys.stdout)
    screen.line(screen.style(f"For {options.profile}, {_context_in_words(context)}", "bold"))
    show_rows(screen, rows)
    if not rows:
        screen.line("Nothing left that may be shown; `omega-edge stats` tells what is withheld.")
    return EXIT_OK


def _context_in_words(context: ViewContext) -> str:
    day = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[context.day_of_week]
    return f"{day} {context.time_of_day.value}" + (
        f", in the mood for {context.mood_hint}" if context.mood_hint else ""
    )


def show_rows(screen: Screen, rows: list[Recommendation]) -> None:
    """Two lines a recommendation: the title with its figures, then the reason."""
    for rank, row in enumerate(rows, start=1):
        figures = f"score {row.score:.2f}  chance {row.confidence:4.0%}"
        ids = fit(row.content_id, 10)
        title = fit(row.content_title, screen.width - len(figures) - len(ids) - 8)
        screen.line(f"{rank:3}  {screen.style(title, 'bold')} {screen.style(ids, 'dim')}  {figures}")
        screen.paragraph(row.reason, indent="     ", style="dim")


def _explain(options: argparse.Namespace, config: BrainConfig) -> int:
    moment = parse_moment(options.at, config.zone())
    with open_brain(config, moment) as brain:
        context = brain.now_context(options.profile, options.mood)
        told = brain.explain(options.content_id, context)
    if options.json:
        write_json({"profile": options.profile, "context": context, **as_plain(told)})
        return EXIT_OK
    _show_explanation(Screen(sys.stdout), told, config)
    return EXIT_OK


def _show_explanation(screen: Screen, told: Explanation, config: BrainConfig) -> None:
    screen.line(screen.style(told.content_title, "bold") + f"  score {told.score:.2f}  chance {told.confidence:.0%}")
    screen.line(f"Withheld: {told.withheld}" if told.withheld else "May be offered.")
    screen.line(told.reason)
    if told.place_by_score is not None:
        screen.line(f"Place {told.place_by_score} by its score, {told.place_in_second_stage} after the second stage.")
    screen.heading("What the score is made of")
    ordered = sorted(told.features.items(), key=lambda item: -abs(item[1].contribution))
    screen.table(
        ("feature", "value", "weight", "contribution"),
        [(name, f"{part.value:.4f}", f"{part.weight:.3f}", f"{part.contribution:+.4f}") for name, part in ordered],
        (18, 10, 10, 13),
        "lrrr",
    )
    if told.events:
        screen.heading("Events that lift it most")
        screen.table(
            ("title", "watched", "fall without it"),
            [
                (event.content_title, in_minutes(event.timestamp, config.zone()), f"{event.drop:.4f}")
                for event in told.events
            ],
            (screen.width - 40, 18, 16),
            "llr",
        )


# Feedback and profiles ------------------------------------------------------------------------------------


def _feedback(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        recorded = brain.feedback(options.content_id, options.kind, options.profile, options.title)
        brain.flush()
    if options.json:
        write_json({"sequence": recorded.sequence, "durable": True})
    else:
        print(f"{options.kind.replace('_', ' ')}: noted for {options.profile}")
    return EXIT_OK


def _onboard(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        if options.pick:
            brain.pick_favourites(options.pick, options.profile)
            brain.flush()
        titles = brain.onboarding(options.profile, options.count)
    if options.json:
        write_json({"profile": options.profile, "picked": options.pick or [], "titles": titles})
        return EXIT_OK
    screen = Screen(sys.stdout)
    if options.pick:
        screen.line(f"{counted(len(options.pick), 'favourite')} noted for {options.profile}; `omega-edge recommend` uses them")
    screen.line(screen.style(f"Which of these does {options.profile} know and like? --pick takes their ids", "bold"))
    for title in titles:
        screen.line(f"  {screen.style(fit(title.content_id, 10), 'dim')} {title.name}")
    return EXIT_OK


def _list_profiles(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        profiles = brain.profiles()
    if options.json:
        write_json({"profiles": profiles})
        return EXIT_OK
    rows = [
        (each.id, each.name, "none" if each.max_age_rating is None else f"{each.max_age_rating} years")
        for each in profiles
    ]
    Screen(sys.stdout).table(("id", "name", "age limit"), rows, (32, 30, 10), "lll")
    return EXIT_OK


def _set_profile(options: argparse.Namespace, config: BrainConfig) -> int:
    profile = Profile(options.id, options.name, options.max_age_rating)
    with open_brain(config) as brain:
        brain.set_profile(profile)
        brain.flush()
    if options.json:
        write_json({"profile": profile})
    else:
        print(f"profile {profile.id} is set")
    return EXIT_OK


# The household's data --------------------------------------------------------------------------------------


def _import(options: argparse.Namespace, config: BrainConfig) -> int:
    if options.file == "-":
        if sys.stdin is None:
            raise FileNotFoundError("import: expected an export on standard input, which is closed")
        content = sys.stdin.buffer.read(MAX_IMPORT_BYTES + 1)
    else:
        require_file(Path(options.file), "import", "name a file that `omega-edge export` wrote, or -")
        with open(options.file, "rb") as file:
            content = file.read(MAX_IMPORT_BYTES + 1)
    if len(content) > MAX_IMPORT_BYTES:
        raise ProtocolError(f"import: expected at most {MAX_IMPORT_BYTES} bytes")
    try:
        exported = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"import: expected the JSON that `omega-edge export` wrote: {error}") from None
    if not isinstance(exported, dict):
        raise ProtocolError(f"import: expected a JSON object, got {type(exported).__name__}")
    with open_brain(config) as brain:
        brain.import_export(exported, replace_existing=options.replace)
        stats = brain.stats()
    if options.json:
        write_json({"imported": True, "memory": stats["memory"]})
    else:
        print("imported; `omega-edge stats` shows what is stored now")
    return EXIT_OK


def _forget(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        brain.forget(content_id=options.title, profile=options.profile, everything=options.everything)
    what = "everything" if options.everything else options.title or options.profile
    if options.json:
        write_json({"forgotten": what})
    else:
        print(f"forgotten: {what}. No file under {config.storage_path} names it any more.")
    return EXIT_OK


def _stats(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        stats = brain.stats()
        withheld = {profile.id: brain.withheld_counts(profile.id) for profile in brain.profiles()}
    stats = {**stats, "withheld": withheld}
    if options.json:
        write_json(stats)
        return EXIT_OK
    screen = Screen(sys.stdout)
    _show_tree(screen, as_plain(stats))
    return EXIT_OK


def _sync(options: argparse.Namespace, config: BrainConfig) -> int:
    from omega_edge import cli_sync  # here, because it loads asyncio, which no other verb needs

    return cli_sync.sync(options, config)


def _show_tree(screen: Screen, value: dict, indent: int = 0) -> None:
    for key, item in value.items():
        name = " " * indent + str(key).replace("_", " ")
        if isinstance(item, dict):
            screen.line(screen.style(name, "bold") if not indent else name)
            _show_tree(screen, item, indent + 2)
        elif isinstance(item, list):
            screen.line(f"{fit(name, 32)} {'none' if not item else ''}")
            for part in item:
                words = ", ".join(f"{name} {told}" for name, told in part.items()) if isinstance(part, dict) else str(part)
                screen.paragraph(words, indent=" " * (indent + 2))
        else:
            screen.line(f"{fit(name, 32)} {'none' if item is None else item}")


def _show_settings(options: argparse.Namespace, settings: tuple[Setting, ...]) -> int:
    brain_config(settings)
    if options.json:
        write_json({setting.name: {"value": setting.value, "origin": setting.origin} for setting in settings})
        return EXIT_OK
    screen = Screen(sys.stdout)
    for setting in settings:
        value = "none" if setting.value is None else str(as_plain(setting.value))
        screen.line(f"{fit(setting.name, 24)} {value}  {screen.style('(' + setting.origin + ')', 'dim')}")
        if setting.name == "sharing":
            screen.paragraph(SHARING_WORDS[setting.value], indent=" " * 25)
    return EXIT_OK


_VERBS = {
    "recommend": _recommend,
    "explain": _explain,
    "observe": observe,
    "feedback": _feedback,
    "onboard": _onboard,
    "export": export,
    "import": _import,
    "forget": _forget,
    "stats": _stats,
    "sync": _sync,
}

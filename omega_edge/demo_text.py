"""The demonstration as terminal text, 72 to 96 columns wide, from the same object that --json prints."""

from __future__ import annotations

from omega_edge.cli_output import Screen, counted, fit, in_bytes, in_days, in_minutes, text_width
from omega_edge.demo_loop_text import show_two_televisions

_VERDICT_STYLES = {"met": "good", "missed": "bad"}
_VERDICT_MARKS = {"met": "✓ met", "missed": "✗ missed"}
_WITHHELD_IN_WORDS = {
    "age_rating": "rated above the limit",
    "unrated": "without a rating",
    "not_available": "not available now",
    "hidden": "hidden by the profile",
    "seen": "already seen",
    "unknown": "not in the catalogue",
}
_GAP = 2


def show(screen: Screen, told: dict) -> None:
    """Print the whole demonstration."""
    _show_household(screen, told)
    _show_list(screen, told)
    _show_feedback(screen, told["after_feedback"])
    _show_children(screen, told["children"])
    _show_times(screen, told["times_of_day"])
    _show_stored(screen, told["stored"])
    _show_measured(screen, told)
    show_two_televisions(screen, told["two_televisions"])
    screen.line()
    for note in told["notes"]:
        screen.paragraph(note, style="dim")


def _show_household(screen: Screen, told: dict) -> None:
    data, household = told["data"], told["household"]
    screen.line(screen.style("═" * screen.width, "dim"))
    screen.line(
        screen.style(f"Omega Edge {told['machine']['omega_edge']}", "bold")
        + ": one household's viewing, on this machine"
    )
    screen.line(screen.style("═" * screen.width, "dim"))
    screen.paragraph(
        f"{data['name']}: {data['titles']:,} titles, {data['households']:,} households, {data['viewings']:,} viewings."
    )
    genres = ", ".join(f"{each['genre']} {each['titles']}" for each in household["most_finished_genres"])
    screen.paragraph(
        f"Household {household['id']} watched {counted(household['titles'], 'title')} from "
        f"{in_days(household['first'])} to {in_days(household['last'])} and finished {household['finished']}; "
        f"most of them {genres}. The last ones:"
    )
    for each in household["last_viewings"]:
        title = fit(each["content_title"], 56)
        screen.line(f"     {screen.style(fit(in_minutes(each['at']), 17), 'dim')}  {title} {each['watched']:4.0%}")


def _moment(listed: dict) -> str:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    context = listed["context"]
    return f"{days[context['day_of_week']]} {context['time_of_day']}, {in_minutes(listed['at'])} UTC"


def _show_row(screen: Screen, row: dict, mark: str = "") -> None:
    figures = f"score {row['score']:.2f}  chance {row['confidence']:3.0%}"
    room = screen.width - 5 - _GAP - text_width(figures) - (text_width(mark) + _GAP if mark else 0)
    title = screen.style(fit(row["content_title"], room), "bold")
    screen.line(f"{row['rank']:3}  {title}  {mark + '  ' if mark else ''}{figures}")
    screen.paragraph(row["reason"], indent="     ", style="dim")


def _show_list(screen: Screen, told: dict) -> None:
    listed = told["recommendations"]
    screen.heading(f"What to watch now: {_moment(listed)}")
    for row in listed["rows"]:
        _show_row(screen, row)
    screen.paragraph(
        "score: how well it fits; chance: how likely it is watched to 70 % or more, as learned from other homes. "
        "A reason names the viewing without which the title's score would fall most.",
        style="dim",
    )


def _change(row: dict) -> str:
    before, rank = row["rank_before"], row["rank"]
    if before is None:
        return "new"
    if before == rank:
        return ""
    return f"{'up' if before > rank else 'down'} from {before}"


def _show_feedback(screen: Screen, changed: dict) -> None:
    screen.heading(f"The same after “not interested” in {changed['feedback']['content_title']}")
    for row in changed["rows"]:
        _show_row(screen, row, fit(_change(row), 12))


def _show_children(screen: Screen, children: dict) -> None:
    profile = children["profile"]
    screen.heading(f"Profile “{profile['name']}”, up to {profile['max_age_rating']} years")
    for row in children["rows"]:
        _show_row(screen, row)
    reasons = ", ".join(
        f"{count:,} {_WITHHELD_IN_WORDS[reason]}" for reason, count in children["withheld"].items() if count
    )
    screen.paragraph(f"Withheld: {children['withheld_total']:,} of {children['titles']:,} titles: {reasons}.")


def _show_times(screen: Screen, times: dict) -> None:
    screen.heading("Morning against late evening (the data's times are UTC: a demonstration)")
    width = (screen.width - 5) // 2
    screen.line(
        "     "
        + screen.style(fit(_moment(times["morning"]), width) + fit(_moment(times["late_evening"]), width), "dim")
    )
    for morning, evening in zip(times["morning"]["rows"], times["late_evening"]["rows"], strict=False):
        left, right = (f"{row['score']:.2f}  {row['content_title']}" for row in (morning, evening))
        screen.line(f"{morning['rank']:3}  {fit(left, width - _GAP)}  {fit(right, width)}")

    def rank(value: int | None) -> str:
        return "not among them" if value is None else f"{value}."

    moved = "What moves most:" if times["moved_most"] else "They stand in the same order."
    if times["context_weight"] == 0:
        moved += " The ranking was fitted to this data and found no use for the time of day: its weight is 0."
    screen.paragraph(f"Of the first {times['compared']} of each, {times['in_both']} are in both. {moved}", style="dim")
    for each in times["moved_most"]:
        screen.line(
            f"     {fit(each['content_title'], 48)}  morning {rank(each['rank_morning'])}  "
            f"late evening {rank(each['rank_late_evening'])}"
        )


def _show_stored(screen: Screen, stored: dict) -> None:
    screen.heading("What the television keeps of this household")
    for line in stored["in_words"]:
        screen.paragraph("·  " + line, hanging="   ")
    screen.paragraph(
        f"{in_bytes(stored['file_bytes'])} in {counted(len(stored['files']), 'file')}. "
        f"Sharing mode “{stored['sharing']}”: {stored['sharing_in_words']} "
        "`omega-edge export` shows every record, `omega-edge forget` erases it from the files."
    )


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    digits = 0 if value >= 100 or unit == "B" else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _show_measured(screen: Screen, told: dict) -> None:
    machine = told["machine"]
    screen.heading("Measured here, against the limits of a release")
    name_width = screen.width - 52
    screen.line(screen.style(f"{'':{name_width}}  {'here':>10}  {'limit':>9}  {'aim':>9}", "dim"))
    for line in told["measured"]:
        figures = [
            _figure(line[key], line["unit"]) if line[key] is not None else "" for key in ("value", "limit", "aim")
        ]
        verdict = line["verdict"]
        mark = screen.style(fit(_VERDICT_MARKS.get(verdict, verdict), 12), _VERDICT_STYLES.get(verdict, "dim"))
        screen.line(f"{fit(line['words'], name_width)}  {figures[0]:>10}  {figures[1]:>9}  {figures[2]:>9}  {mark}")
    screen.paragraph(
        f"Opening and memory: of fresh processes. Recommend and observe: at each of {told['measured_events']} viewings "
        "of several households, spread over six hours of a virtual clock; so are the bytes written, a checkpoint included.",
        style="dim",
    )
    screen.paragraph(
        f"{machine['cpu']}, kernels {machine['instruction_set']}, Python {machine['python']}. {told['measured_note']}",
        style="dim",
    )

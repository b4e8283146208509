"""Two televisions and a shard as terminal text, from what demo_loop.py tells."""

from __future__ import annotations

from omega_edge.cli_output import Screen, counted, fit, in_days, in_minutes

MAX_TITLES = 8
"""Of A's list that are named."""


def show_two_televisions(screen: Screen, told: dict) -> None:
    """Print this part, or why it is left out."""
    screen.heading("Two televisions and a shard")
    if "left_out" in told:
        screen.paragraph(f"Left out: {told['left_out']}.")
        return
    first, second = told["television_a"], told["television_b"]
    screen.paragraph(
        f"A real shard and a hub ran on this machine until {in_minutes(told['at'])} UTC of the data's time. All televisions have "
        f"a catalogue that is {told['catalog_days']} days old, trained on what came before it. For {told['shared_days']} days "
        f"television A (household {first['household']}) and {counted(told['further_homes']['homes'], 'other home')} of the data "
        f"share; television B (household {second['household']}) and {counted(told['receiving_homes']['homes'] - 1, 'other home')} "
        "only receive. Behind these televisions are brains; the other homes' lists are sent without one."
    )
    _show_first(screen, first)
    _show_second(screen, told, second)
    screen.paragraph(
        f"Told are titles that {told['min_devices']} televisions or more finished: the threshold is lowered to the few "
        f"homes of this data, the product's is {told['min_devices_of_product']}. The weekly bundle of the model job is not shown here; "
        f"`python -m bench.loop` measures the whole loop. This part took {told['seconds']:.0f} s.",
        style="dim",
    )


def _bytes(sync: dict) -> str:
    return (
        f"{sync['body_bytes_up']:,} bytes up and {sync['body_bytes_down']:,} down "
        f"({sync['socket_bytes_up']:,} and {sync['socket_bytes_down']:,} at the socket, HTTP and all)"
    )


def _show_first(screen: Screen, first: dict) -> None:
    screen.line()
    screen.line(screen.style(f"What left television A, in “{first['sharing']}”", "bold"))
    screen.paragraph(first["sharing_in_words"], indent="     ", style="dim")
    for title in first["titles"][:MAX_TITLES]:
        screen.line(f"     {screen.style(fit(in_days(title['finished_at']), 11), 'dim')}  {fit(title['content_title'], 64)}")
    if len(first["titles"]) > MAX_TITLES:
        screen.line(f"     and {len(first['titles']) - MAX_TITLES} more")
    sync, again = first["sync"], first["next_sync"]
    patterns = f" and {counted(sync['patterns'], 'pattern')} (titles with weights)" if sync["patterns"] else ""
    screen.paragraph(f"{counted(sync['titles'], 'title')}{patterns}: {_bytes(sync)}.", indent="     ")
    screen.paragraph(f"The next sync, with nothing new to tell: {_bytes(again)}.", indent="     ")
    totals = first["log"]["totals"]
    screen.paragraph(
        f"Its log of syncs, as `omega-edge sync` leaves it in stats: {counted(totals['syncs'], 'sync')}, "
        f"{totals['failures']} failed; {totals['bytes_up']:,} bytes up, {totals['bytes_down']:,} down; "
        f"{counted(totals['titles'], 'title')}, {counted(totals['patterns'], 'pattern')}.",
        indent="     ",
    )


def _place(rank: int | None, compared: int) -> str:
    return f"beyond {compared}" if rank is None else f"{rank}."


def _show_second(screen: Screen, told: dict, second: dict) -> None:
    gain, compared = told["receiving_homes"], second["compared"]
    screen.line()
    screen.line(screen.style(f"What television B got, in “{second['sharing']}”", "bold"))
    screen.paragraph(second["sharing_in_words"], indent="     ", style="dim")
    screen.paragraph(f"Its sync: {_bytes(second['sync'])}. Its list before and after:", indent="     ")
    width = (screen.width - 5) // 2
    for old, new in zip(second["before"], second["after"], strict=False):
        screen.line(f"{old['rank']:3}  {fit(old['content_title'], width - 2)}  {fit(new['content_title'], width)}")
    screen.paragraph(
        f"What the receiving homes finished in the {told['later_days']} days after, of which nobody was told: "
        f"{counted(gain['titles'], 'title')}. Among the first ten of their lists stood {gain['in_first_ten_before']} before and "
        f"{gain['in_first_ten_after']} after (NDCG@10 {gain['ndcg_at_10_before']:.3f} and {gain['ndcg_at_10_after']:.3f}):",
        indent="     ",
    )
    for words, moved in (("came in", gain["entered"]), ("left", gain["left"])):
        for title in moved[:MAX_TITLES]:
            screen.line(
                f"     {fit(words, 8)} {fit(title['content_title'], 42)}  before {_place(title['rank_before'], compared)}  "
                f"after {_place(title['rank_after'], compared)}"
            )

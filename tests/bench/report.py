"""From the figures of all passes to the goals, the tables and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.servers import SERVERS
from tests.bench.works import WORKS, Sizes

Results = dict[str, dict[str, list[float | None]]]
"""By figure, such as ``1 token``, and server: its value in each pass, None where it was void."""


@dataclass(frozen=True)
class Goal:
    """That a figure of a server is at most ``limit`` times that of the best of its ``peers``."""

    text: str
    figure: str
    limit: float
    peers: Sequence[str] = ()
    """The servers to compare with; none: the server itself, by its figure ``against``."""
    against: str = ""
    server: str = "ours"

    def of(self, results: Results) -> list[float]:
        """Return what each pass gives that has both figures."""
        found = []
        for number, value in enumerate(results.get(self.figure, {}).get(self.server, ())):
            by_server = results.get(self.against or self.figure, {})
            others = [
                by_server.get(p, [])[number : number + 1] for p in self.peers or [self.server]
            ]
            against = [other for each in others for other in each if other]
            if value is not None and against:
                found.append(value / min(against))
        return found

    def met(self, found: Sequence[float]) -> bool:
        return median(found) <= self.limit


PEERS = "abcdfgh"

GOALS = (
    *(
        Goal(f"first token, {at}, of d's", f"3 token {count}", limit, "d", server=server)
        for count, at in ((1, "alone"), (50, "50 at once"), (200, "200 at once"))
        for server, limit in (("ours", 1.15 if count == 1 else 1.05), ("ours+", 1))
    ),
    *(
        Goal(f"first event, {at}, of d's", f"3 event {count}", 1, "d", server=server)
        for count, at in ((1, "alone"), (50, "50 at once"), (200, "200 at once"))
        for server in ("ours", "ours+")
    ),
    Goal("memory of a waiting run, of d's", "4 run", 1, "d"),
    Goal("memory of a waiting run, of d's", "4 run", 1, "d", server="ours+"),
    Goal("a token made in the process, of d's", "1 token", 0.85, "d"),
    Goal("a token made in the process, of d's", "1 token", 0.65, "d", server="ours+"),
    Goal("a token through ChatOpenAI, paced, of the best peer's", "2 paced", 0.65, PEERS),
    Goal("a token in a run of 10,000, of one in a run of 100", "7 long", 1.05, against="7 short"),
    Goal(
        "a token in a thread with 200 earlier messages, of one with none",
        "9 token, old",
        1.05,
        against="9 token, new",
    ),
    Goal(
        "first token in a thread with 200 earlier messages, of one with none",
        "9 first, old",
        1.3,
        against="9 first, new",
    ),
    Goal("`python app.py` to its first page, of version 0.1's", "6 page", 0.6, ["0.1"]),
)


def spread(values: Sequence[float | None]) -> str:
    """Return the median and, in brackets, the lowest and the highest."""
    known = [value for value in values if value is not None]
    if not known:
        return "void"
    middle, *ends = (number(value) for value in (median(known), min(known), max(known)))
    void = f", {len(values) - len(known)} void" if len(known) < len(values) else ""
    return f"{middle} ({ends[0]}–{ends[1]}{void})" if len(known) > 1 or void else middle


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(results: Results, about: dict[str, Any]) -> str:
    """Return all of it as Markdown: what was measured where, the goals, then the figures."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    passes = max(len(values) for by_server in results.values() for values in by_server.values())
    together = [key for key in WORKS if not any(key in keys for keys in ALONE.values())]
    lines = [
        f"`{about['command']}`, {about['date']}; passes: {passes}; {about['cores']}. {versions}.",
        *(f"- left out: {why}" for why in about["left out"]),
        *(f"- void: {why}" for why in about["void"]),
        "",
        "### Servers",
        "",
        *(f"- **{server.name}**: {server.about}" for server in SERVERS),
    ]
    tables = {"Goals": goal_rows(results), "Side by side": figure_rows(results, together)}
    tables |= {title: figure_rows(results, keys) for title, keys in ALONE.items()}
    for title, rows in tables.items():
        if rows:
            lines += ["", f"### {title}", "", *rows]
    return "\n".join(lines) + "\n"


ALONE = {
    "Long runs, long threads, many readers": (7, 9, 5),
    "Runs in Redis": (8,),
}
"""The works that are not asked of the peers, by the title of their table."""

HEADS = {
    "1 token": "a token made in the process, µs",
    "2 flooded": "a token through ChatOpenAI, flooded, µs",
    "2 paced": "the same, 20 a second, µs",
    "4 run": "a waiting run, KiB",
    "4 reader": "a further reader of it, KiB",
    "5 live": "events read live, 1,000/s",
    "5 replayed": "events replayed, 1,000/s",
    "5 1 reader": "a token for one reader, µs",
    "5 10 readers": "a token for ten readers of one run, µs",
    "5 10 runs": "a token in each of ten runs, µs",
    "6 page": "start to first page, s",
    "6 token": "start to first token, s",
    "6 resident": "memory at rest, MiB",
    "7 run": "a run without its tokens, ms",
    "7 short": "a token in a run of 100, µs",
    "7 long": "a token in a run of 10,000, µs",
    "8 token": "a token made in the process, µs",
    "8 flooded": "Redis's own time for it, µs",
    "8 paced": "the same, 20 a second, µs",
    "8 memory": "Redis's memory for it, bytes",
    "9 first, new": "first token in a new thread, ms",
    "9 first, old": "the same after 200 messages, ms",
    "9 token, new": "a token in a new thread, µs",
    "9 token, old": "the same after 200 messages, µs",
} | {
    f"3 {what} {count}": f"first {what}, {'alone' if count == 1 else f'{count} at once'}, ms"
    for what in ("token", "event")
    for count in Sizes().starts
}
"""What each figure is called, in the order of the works."""


def figure_rows(results: Results, keys: Sequence[int]) -> list[str]:
    """Return a table of medians: a row for each figure, a column for each server."""
    figures = [f"{key} {name}" for key in keys for name in WORKS[key].units]
    figures = [figure for figure in figures if figure in results]
    servers = [s.name for s in SERVERS if any(s.name in results[f] for f in figures)]
    rows = []
    for figure in figures:
        row = [HEADS[figure]]
        for server in servers:
            known = [v for v in results[figure].get(server, ()) if v is not None]
            row.append(number(median(known)) if known else "")
        rows.append(row)
    return grid(["median", *servers], rows) if rows else []


def goal_rows(results: Results) -> list[str]:
    rows = []
    for goal in GOALS:
        if found := goal.of(results):
            met = "met" if goal.met(found) else "**not met**"
            rows.append([goal.text, goal.server, spread(found), f"≤ {number(goal.limit)}", met])
    return grid(["", "server", "median (lowest–highest)", "goal", ""], rows) if rows else []


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


PANELS = {
    "3 token 50": "first token, 50 questions at once: ms",
    "1 token": "processor time of a token: µs",
    "2 paced": "the same, through ChatOpenAI: µs",
    "4 run": "memory of a waiting run: KiB",
}


def plot(results: Results, path: Path) -> None:
    """Draw medians of the figures that the servers have in common."""
    try:
        from matplotlib import use
    except ImportError:
        return
    use("Agg")
    from matplotlib import pyplot

    panels = {figure: title for figure, title in PANELS.items() if figure in results}
    if not panels:
        return
    names = [s for s in SERVERS if any(s.name in results[figure] for figure in panels)][::-1]
    drawing, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.6), sharey=True, squeeze=False)
    for axis, (figure, title) in zip(axes.flat, panels.items(), strict=True):
        for server in names:
            known = [v for v in results[figure].get(server.name, ()) if v is not None]
            value = median(known) if known else 0
            label = f"{server.name}  {server.about}".replace("`", "")
            axis.barh(label, value, color="#2a6fbb" if server.ours else "#b8bcc2", height=0.7)
            if known:
                axis.annotate(
                    number(value),
                    (value, label),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axis.set_title(title, fontsize=9, loc="left")
        axis.margins(x=0.2)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False, labelsize=8)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)

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

OURS = ("ours", "ours+")


@dataclass(frozen=True)
class Goal:
    """That a figure is at most ``limit`` times another, of the same server or of the best peer.

    ``limits`` are for the server as installed and for the one with uvloop, None where none is set.
    """

    text: str
    figure: str
    against: str
    limits: tuple[float | None, float | None]
    peers: Sequence[str] = ()
    """The servers to compare with; none: the server's own figure ``against``."""
    at_least: bool = False


def _first_goals() -> list[Goal]:
    names = [f"{n}{p}" for n in Sizes().starts for p in ("", " p99")]
    return [
        Goal(
            f"first {what}, {name.replace(' p99', ' starts, 99th percentile')}",
            figure,
            figure,
            limits,
            "d",
        )
        for name in names
        for what in ("event", "token")
        for figure, limits in ((f"3 {what} {name}", (1.0, 1.0)),)
    ]


GOALS = (
    Goal("a token in the process, of the article's", "1 token", "1 token", (0.75, 0.55), "a"),
    Goal("a token in the process, of the leanest's", "1 token", "1 token", (1.0, 0.8), "d"),
    Goal(
        "a paced token from upstream, of the best peer's", "2 paced", "2 paced", (1.0, None), "abcd"
    ),
    Goal("a paced token from upstream, of the floor's", "2 paced", "2 paced", (1.1, None), "e"),
    *_first_goals(),
    Goal("memory of a waiting run, of the article's", "4 run", "4 run", (0.5, 0.5), "a"),
    Goal("memory of a further reader, of the article's", "4 reader", "4 reader", (0.5, 0.5), "a"),
    Goal("ten readers of a run, of one reader's cost", "5 10 readers", "5 1 reader", (1.5, 1.5)),
    Goal("events a second replayed, of live", "5 replayed", "5 live", (10, 10), at_least=True),
    Goal("a token of a long run, of a short run's", "7 long", "7 short", (1.1, 1.1)),
)


def ratios(results: Results, goal: Goal, name: str) -> list[float]:
    """Return the ratio of each pass that has both figures."""
    found = []
    for number, value in enumerate(results.get(goal.figure, {}).get(name, ())):
        others = [
            results[goal.against].get(peer, [])[number:][:1] for peer in goal.peers or (name,)
        ]
        against = [other for each in others for other in each if other]
        if value is not None and len(against) == len(others):
            found.append(value / min(against))
    return found


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
    """Return all of it as Markdown: what was measured where, the goals, then each work."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Measured",
        "",
        f"`{about['command']}`, {about['date']}: {about['passes']} passes, {about['cores']}.",
        f"{versions}.",
        "",
        "Each figure is the median of the passes (lowest–highest); less is better, save where a "
        "goal says ≥.",
        "",
        *(f"- **{server.name}**: {server.about}" for server in SERVERS),
        *(f"- void: {why}" for why in about["void"]),
        "",
        *goal_rows(results),
    ]
    for key, work in WORKS.items():
        figures = [f"{key} {name}" for name in work.units]
        measured = [s for s in SERVERS if any(s.name in results.get(f, {}) for f in figures)]
        if measured:
            heads = [f"{name}, {unit}" for name, unit in work.units.items()]
            rows = [
                [server.name, *(spread(results[f].get(server.name, ())) for f in figures)]
                for server in measured
            ]
            lines += ["", f"## {key}. {work.title}", "", *grid(["", *heads], rows)]
    return "\n".join(lines) + "\n"


def goal_rows(results: Results) -> list[str]:
    rows = []
    for goal in GOALS:
        row = [f"{goal.figure[0]}. {goal.text}"]
        for name, limit in zip(OURS, goal.limits, strict=True):
            found = ratios(results, goal, name)
            if not found:
                row += ["", ""]
            elif limit is None:
                row += [spread(found), ""]
            else:
                middle = median(found)
                met = middle >= limit if goal.at_least else middle <= limit
                sign = "≥" if goal.at_least else "≤"
                row += [spread(found), f"{sign} {number(limit)}: {'met' if met else '**not met**'}"]
        if any(row[1:]):
            rows.append(row)
    heads = ["ratio, in the same pass", "ours, as installed", "goal", "ours, with uvloop", "goal"]
    return ["## Goals", "", *grid(heads, rows)] if rows else []


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


PANELS = {
    "1 token": "token made in the process, µs",
    "2 flooded": "token from upstream, flooded, µs",
    "2 paced": "token from upstream, paced, µs",
    "3 token 50": "first token, 50 starts, median ms",
    "3 token 200 p99": "first token, 200 starts, p99 ms",
    "4 run": "memory of a waiting run, KiB",
    "4 reader": "memory of a further reader, KiB",
    "6 start": "start to first answer, s",
}


def plot(results: Results, path: Path) -> None:
    """Draw the figures that the servers have in common, with the spread of the passes."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")
    panels = {figure: title for figure, title in PANELS.items() if figure in results}
    if not panels:
        return
    drawing, axes = pyplot.subplots(
        -(-len(panels) // 4), min(4, len(panels)), figsize=(13, 6), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (figure, title) in zip(axes.flat, panels.items(), strict=False):
        passes = {
            name: [v for v in values if v is not None] for name, values in results[figure].items()
        }
        names = [server.name for server in SERVERS if passes.get(server.name)][::-1]
        middle = [median(passes[name]) for name in names]
        errors = [
            [m - min(passes[n]) for n, m in zip(names, middle, strict=True)],
            [max(passes[n]) - m for n, m in zip(names, middle, strict=True)],
        ]
        colours = ["#2a6fbb" if name in OURS else "#b8bcc2" for name in names]
        axis.barh(
            names, middle, xerr=errors, color=colours, ecolor="#55585c", capsize=2, height=0.7
        )
        for name, value, high in zip(names, middle, errors[1], strict=True):
            axis.annotate(
                number(value),
                (value + high, name),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_title(title, fontsize=10, loc="left")
        axis.margins(x=0.18)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False, labelsize=8)
    legend = "     ".join(f"{server.name}: {server.about}" for server in SERVERS)
    drawing.text(0.5, 0.01, legend, ha="center", fontsize=8, wrap=True)
    drawing.tight_layout(rect=(0, 0.06, 1, 1))
    for kind in ("png", "svg"):
        drawing.savefig(path.with_suffix(f".{kind}"), dpi=150)

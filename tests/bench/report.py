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
    sign: str = "≤"
    unit: str = "×"
    """``×`` for a ratio, else the unit of the figure: then the difference counts."""

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
                best = min(against)
                found.append(value / best if self.unit == "×" else value - best)
        return found

    def met(self, found: Sequence[float]) -> bool:
        middle = median(found)
        return middle <= self.limit if self.sign == "≤" else middle >= self.limit


GOALS = (
    Goal("a token in the process, of a's", "1 token", 0.75, "a"),
    Goal("a token in the process, of d's", "1 token", 1, "d"),
    Goal("with uvloop, of a's", "1 token", 0.55, "a", server="ours+"),
    Goal("with uvloop, of d's", "1 token", 0.8, "d", server="ours+"),
    Goal("with its runs in Redis, of its own", "1 token", 1.5, ["ours"], server="redis"),
    Goal("a paced token from upstream, of the best peer's", "2 paced", 1, "abcd"),
    Goal("a paced token from upstream, of e's", "2 paced", 1.1, "e"),
    *(
        Goal(
            f"first {what} at {count} at once{of}, of d's",
            f"3 {what} {count}{p99}",
            1,
            "d",
        )
        for count in Sizes().starts
        for what in ("event", "token")
        for p99, of in (("", ""), (" p99", ", 99th percentile"))
    ),
    Goal("first token with Redis, later by", "3 token 1", 2, ["ours"], server="redis", unit="ms"),
    Goal("memory of a waiting run, of a's", "4 run", 0.5, "a"),
    Goal("memory of a further reader, of a's", "4 reader", 0.5, "a"),
    Goal("ten readers of a run, of one reader's cost", "5 10 readers", 1.5, against="5 1 reader"),
    Goal("events a second replayed, of live", "5 replayed", 10, against="5 live", sign="≥"),
    Goal("a token of a long run, of a short run's", "7 long", 1.1, against="7 short"),
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
        if found := goal.of(results):
            limit = f"{goal.sign} {number(goal.limit)} {goal.unit}".removesuffix(" ×")
            told = "met" if goal.met(found) else "**not met**"
            rows.append([f"{goal.figure[0]}. {goal.text}", spread(found), limit, told])
    heads = ["within a pass", "median (lowest–highest)", "goal", ""]
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
        colours = ["#b8bcc2" if len(name) == 1 else "#2a6fbb" for name in names]
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
    peers, ours = (
        "     ".join(f"{s.name}: {s.about}" for s in SERVERS if s.ours is mine)
        for mine in (False, True)
    )
    drawing.text(0.5, 0.01, f"{peers}\n{ours}", ha="center", fontsize=8)
    drawing.tight_layout(rect=(0, 0.06, 1, 1))
    drawing.savefig(path, dpi=110)

"""Figures of a result: learning curves of all arms, and the claims as a forest plot."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, in an order whose neighbours differ most; line styles repeat the distinction in print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.4)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
    (0, (2, 2)),
)
VERDICT_COLOURS = {
    "supported": "#00694d",
    "refuted": "#b3402a",
    "inconclusive": "#6b6b6b",
    "unjudged": "#9a9a9a",
}
INK, FAINT = "#222222", "#d9d9d9"

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "concordant",
}


@contextmanager
def styled() -> Iterator[None]:
    """The looks of all figures, while one is drawn."""
    with mpl.rc_context(_STYLE):
        yield


def look(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each arm; each round through the colours shifts the styles by one."""
    count = len(PALETTE)
    return {
        arm: {"color": PALETTE[i % count], "linestyle": STYLES[(i + i // count) % len(STYLES)]}
        for i, arm in enumerate(arms)
    }


def legend(figure: Figure, handles: Mapping[str, Any], columns: int) -> None:
    """Name the arms above the panels."""
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=min(len(handles), columns),
        handlelength=3,
    )


def curve_metrics(result: Mapping[str, Any], most: int = 6) -> list[str]:
    """Return the metrics that have curves: those of the claims first."""
    points = [point for runs in result.get("curves", {}).values() for run in runs for point in run]
    claimed = [claim["metric"] for claim in result["claims"]]
    names = dict.fromkeys([*claimed, *(name for point in points for name in point)])
    return [name for name in names if name != "step" and any(_is_number(p.get(name)) for p in points)][:most]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curves(result: Mapping[str, Any]) -> Figure | None:
    """Draw each metric over training steps: thin lines for seeds, a thick one for their mean."""
    names = curve_metrics(result)
    if not names:
        return None
    arms = list(result["curves"])
    across = min(len(names), 3)
    down = -(-len(names) // across)
    with styled():
        figure = Figure(figsize=(3.2 * across + 0.4, 2.5 * down + 0.5), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        handles: dict[str, Any] = {}
        for i, axes in enumerate(grid.flat):
            if i >= len(names):
                axes.set_axis_off()
                continue
            _curve(axes, names[i], result["curves"], look(arms), handles)
            axes.set_xlabel("training step" if i + across >= len(names) else "")
        legend(figure, handles, 5)
    return figure


def _curve(
    axes: Axes, name: str, curves: Mapping[str, Any], looks: Mapping[str, Any], handles: dict[str, Any]
) -> None:
    axes.set_title(name.replace("_", " "))
    axes.margins(x=0.02)
    for arm, runs in curves.items():
        total: dict[float, list[float]] = {}
        for run in runs:
            points = [(point["step"], point[name]) for point in run if _is_number(point.get(name))]
            if points:
                axes.plot(*zip(*points, strict=True), color=looks[arm]["color"], linewidth=0.7, alpha=0.35)
            for step, value in points:
                total.setdefault(step, []).append(value)
        most = max(map(len, total.values()), default=0)
        mean = [
            (step, sum(values) / len(values)) for step, values in sorted(total.items()) if len(values) == most
        ]
        if mean:
            marker = "o" if len(mean) == 1 else ""
            (handles[arm],) = axes.plot(*zip(*mean, strict=True), linewidth=2, marker=marker, **looks[arm])


def forest(result: Mapping[str, Any]) -> Figure | None:
    """Draw each claim's difference with its interval, its seeds as small dots, and the margin that matters.

    Claims on the same metric share an axis; metrics of different scales do not.
    """
    by_metric: dict[str, list[Any]] = {}
    for claim in result["claims"]:
        if claim["difference"] is not None:
            by_metric.setdefault(claim["metric"], []).append(claim)
    if not by_metric:
        return None
    heights = [0.55 + 0.45 * len(claims) for claims in by_metric.values()]
    with styled():
        figure = Figure(figsize=(8.2, 0.3 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, claims) in zip(grid, by_metric.items(), strict=True):
            _forest_axes(axes, metric, claims)
        grid[-1].set_xlabel("difference, arm minus comparison")
    return figure


def _forest_axes(axes: Axes, metric: str, claims: Sequence[Mapping[str, Any]]) -> None:
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_title(metric.replace("_", " "))
    axes.axvline(0, color=INK, linewidth=1)
    for row, claim in enumerate(reversed(claims)):
        _claim(axes, row, claim)
    labels = [f"{claim['arm']} − {claim['versus']} ({claim['direction']})" for claim in reversed(claims)]
    axes.set_yticks(range(len(claims)), labels)
    axes.set_ylim(-0.6, len(claims) - 0.4)
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def _claim(axes: Axes, height: int, claim: Mapping[str, Any]) -> None:
    colour = VERDICT_COLOURS[claim["verdict"]]
    if claim["interval"]:
        axes.plot(
            claim["interval"], (height, height), color=colour, linewidth=3, solid_capstyle="butt", alpha=0.85
        )
    axes.plot(
        claim["per_seed"],
        [height - 0.25] * len(claim["per_seed"]),
        "o",
        color=colour,
        markersize=3.2,
        alpha=0.6,
    )
    axes.plot(claim["difference"], height, "D", color=colour, markersize=7)
    if claim["margin"]:
        sign = 1 if claim["direction"] == "higher" else -1
        axes.plot(
            [sign * claim["margin"]] * 2,
            (height - 0.36, height + 0.36),
            color=INK,
            linewidth=1.4,
            linestyle=":",
        )
    axes.annotate(
        claim["verdict"],
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        color=colour,
        fontweight="bold",
        va="center",
        annotation_clip=False,
    )


def svg(figure: Figure | None) -> str:
    """Return a figure as SVG text for embedding, without XML header."""
    if figure is None:
        return ""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def save_png(figure: Figure | None, path: Path) -> Path | None:
    """Write a figure as PNG."""
    if figure is None:
        return None
    with styled():
        figure.savefig(path, format="png", dpi=150)
    return path

"""What rewards say against what gold says, over training."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from concordant.report.figures import INK, legend, look, styled

PROXY, GOLD = "cls", "gold"
_TEXT = ("lm/", "user")


def proxies(result: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the gold metric of a result and the measured metrics that are rewards of some arm; both may be empty.

    Gold is the metric of that name; in worlds that do not generate text also `accuracy`.
    """
    measured = {
        name
        for runs in result.get("curves", {}).values()
        for run in runs
        for point in run
        for name, value in point.items()
        if isinstance(value, int | float)
    }
    known = [GOLD] if str(result.get("world", "")).startswith(_TEXT) else [GOLD, "accuracy"]
    gold = next((name for name in known if name in measured), "")
    if not gold:
        return "", []
    named = [_name(each) for own in result.get("settings", {}).values() for each in _rewards(own)]
    return gold, [name for name in dict.fromkeys([PROXY, *named]) if name in measured and name != gold]


def _rewards(settings: Any) -> Sequence[Any]:
    arm = settings.get("arm") if isinstance(settings, Mapping) else None
    return (arm or {}).get("rewards") or ()


def _name(reward: Any) -> str:
    """The name of a reward in a run's configuration: a text, or the data of a function."""
    return str(reward.get("name", "")) if isinstance(reward, Mapping) else str(reward)


def proxy_and_gold(result: Mapping[str, Any]) -> Figure | None:
    """Draw each arm's way through the plane of what a reward says and what gold says; None if there is no such pair."""
    gold, names = proxies(result)
    if not names:
        return None
    across = min(len(names), 3)
    down = -(-len(names) // across)
    with styled():
        figure = Figure(figsize=(3.6 * across + 0.4, 3.3 * down + 0.5), layout="constrained")
        cells = list(figure.subplots(down, across, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axes, name in zip(cells, names, strict=False):
            _panel(axes, name, gold, result["curves"], handles)
        for axes in cells[len(names) :]:
            axes.set_axis_off()
        legend(figure, handles, 4)
    return figure


def _panel(axes: Axes, name: str, gold: str, curves: Mapping[str, Any], handles: dict[str, Any]) -> None:
    looks = look(list(curves))
    axes.set_xlabel(name.replace("_", " "))
    axes.set_ylabel(gold)
    axes.grid(axis="x", visible=True)
    inside = True
    for arm, runs in curves.items():
        ways = [_way(run, name, gold) for run in runs]
        ways = [way for way in ways if way]
        for way in ways:
            xs, ys = zip(*(way[step] for step in sorted(way)), strict=True)
            inside &= all(0 <= value <= 1 for value in (*xs, *ys))
            if len(ways) > 1:
                axes.plot(xs, ys, color=looks[arm]["color"], linewidth=0.7, alpha=0.35)
        shared = sorted(set.intersection(*(set(way) for way in ways))) if ways else []
        mean = [tuple(sum(way[step][i] for way in ways) / len(ways) for i in (0, 1)) for step in shared]
        if mean:
            xs, ys = zip(*mean, strict=True)
            (handles[arm],) = axes.plot(xs, ys, linewidth=2, **looks[arm])
            axes.plot(xs[0], ys[0], "o", markersize=7, markerfacecolor="white", color=looks[arm]["color"])
            axes.plot(xs[-1], ys[-1], "o", markersize=7, color=looks[arm]["color"])
    if inside:
        _diagonal(axes)


def _diagonal(axes: Axes) -> None:
    """Where reward and gold say the same, as far as the axes reach."""
    reach = (axes.get_xlim(), axes.get_ylim())
    low = max(bounds[0] for bounds in reach)
    high = min(bounds[1] for bounds in reach)
    if low < high:
        axes.plot((low, high), (low, high), ":", color=INK, linewidth=1, zorder=0)
    axes.set_xlim(reach[0])
    axes.set_ylim(reach[1])


def _way(run: Sequence[Mapping[str, Any]], name: str, gold: str) -> dict[float, tuple[float, float]]:
    """Reward and gold by step, where both were measured."""
    return {
        point["step"]: (point[name], point[gold])
        for point in run
        if isinstance(point.get(name), int | float) and isinstance(point.get(gold), int | float)
    }

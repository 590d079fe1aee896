"""`concordant score`: score stored rollouts, or score them again."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, UNSAFE_HELP, console, emit, note, table
from concordant.scoring.isolation import set_isolation

_QUIET = 2.0  # seconds before a progress bar appears


def verb(
    rollouts: Path = typer.Argument(
        metavar="ROLLOUTS", help="Parquet or JSONL: of a run, of TRL, of verl, or plain."
    ),
    reward: list[str] = typer.Option(
        [], metavar="[AS=]FILE.py:NAME", help="Reward function to score with. Repeatable."
    ),
    out: Path | None = typer.Option(
        None, metavar="FILE.{parquet,jsonl}", help="Write the input's columns and the scores there."
    ),
    workers: int = typer.Option(2, help="Processes that call rewards.", min=1),
    timeout: float | None = typer.Option(None, help="Seconds for one call; each reward's own if left out."),
    cache: Path | None = typer.Option(None, help="SQLite file of earlier results; made if there is none."),
    missing: str = typer.Option(
        "",
        help="Rows without a value: exclude, drop-rollout, drop-group or fail; each reward's own if left out.",
    ),
    group: str = typer.Option(
        "", metavar="COLUMN", help="Neighbouring rows that are equal here are a group."
    ),
    map_: list[str] = typer.Option(
        [], "--map", metavar="FIELD=COLUMN", help="Where a field is, e.g. completion=response. Repeatable."
    ),
    old: list[str] = typer.Option(
        [], metavar="[NAME=]COLUMN", help="Scores to compare with; else the column of the reward's name."
    ),
    batch_rows: int = typer.Option(2048, help="Rows scored and stored at a time.", min=1),
    seed: int = typer.Option(0, help="Seed of rewards that draw numbers.", min=0),
    unsafe_no_sandbox: bool = typer.Option(False, "--unsafe-no-sandbox", help=UNSAFE_HELP),
    fresh: bool = typer.Option(
        False, "--fresh/--resume", help="Start anew, or go on where an interrupted call stopped."
    ),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Score stored rollouts with reward functions, and tell how the scores agree with older ones.

    Exit codes: 0 well; 1 a reward judged nothing, or --missing fail met a missing value; 2 wrong use.
    """
    from concordant.scoring.replay import MissingScore, NothingJudged, rescore

    if unsafe_no_sandbox:
        set_isolation("none")
        note("programs that rewards execute run without a sandbox")
    rewards = _rewards(reward, timeout, missing)
    _tell_of_passing_names(rewards, cache)
    fields = dict(_pair(each, "--map") for each in map_)
    before = _old(old, [each.name for each in rewards])
    try:
        with _bar() as watch:
            done = rescore(
                rollouts, rewards, out, workers=workers, cache=cache, seed=seed, group=group or None,
                columns=fields, old=before, batch_rows=batch_rows, fresh=fresh, watch=watch,
            )  # fmt: skip
    except (MissingScore, NothingJudged) as error:
        note(f"finding: {error}")
        raise typer.Exit(1) from None
    emit(done.as_json()) if json else _print(done)
    for name in done.silent:
        first = next(iter(done.rewards[name]["missing"]), "")
        note(f"finding: reward {name!r} judged nothing; most often: {first}")
    raise typer.Exit(int(bool(done.silent)))


def _rewards(texts: Sequence[str], timeout: float | None, missing: str) -> list[Any]:
    from dataclasses import replace

    from concordant.core.errors import RewardError
    from concordant.scoring.reward import load_reward

    if not texts:
        raise RewardError("give at least one --reward FILE.py:NAME")
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    options |= {"missing": missing} if missing else {}
    found = []
    for text in texts:
        name, equals, given = text.partition("=")
        named: dict[str, Any] = {"name": name} if equals and name.isidentifier() else {}
        found.append(replace(load_reward(given if named else text), **options, **named))
    return found


def _tell_of_passing_names(rewards: Sequence[Any], cache: Path | None) -> None:
    """Say which rewards a cache cannot serve again, since their code has no name that another process would find."""
    from concordant.scoring.keys import lasting

    for each in rewards if cache is not None else ():
        if each.cache and not lasting(each):
            note(
                f"reward {each.name!r} holds something that cannot be compared between processes: {cache} will not "
                'have its scores next time; declare @reward(version="...") to say what it is'
            )


def _pair(text: str, option: str) -> tuple[str, str]:
    from concordant.core.errors import ConfigError

    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise ConfigError(f"{option} {text}: write NAME=COLUMN")
    return name, column


def _old(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """A column alone is for every reward; NAME=COLUMN is for one."""
    found: dict[str, str] = {}
    for text in texts:
        found |= dict([_pair(text, "--old")]) if "=" in text else dict.fromkeys(names, text)
    return found


@contextlib.contextmanager
def _bar() -> Iterator[Any]:
    """Yield what draws progress, from the third second on and for people only."""
    import sys

    from concordant.core.progress import track

    if not sys.stderr.isatty():
        yield None
        return
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def watch(done: int, total: int, means: Mapping[str, float]) -> None:
            if not bars and time.monotonic() - began > _QUIET:
                bars.append(stack.enter_context(track("score", total, True)))
            if bars:
                bars[0](done, {f"reward/{name}": mean for name, mean in means.items()})

        yield watch


def _print(done: Any) -> None:
    out = console()
    rows = [(name, *_line(told)) for name, told in done.rewards.items()]
    head = ("reward", "scored", "missing", "mean", "sd", "tied groups", "p50", "p99", "from cache")
    out.print(table(f"{done.path} ({done.format}), {done.rows} rollouts", head, rows, right=head[1:]))
    reasons = [(n, count, why) for n, told in done.rewards.items() for why, count in _top(told["missing"])]
    if reasons:
        out.print(table("missing, by reason", ("reward", "rollouts", "reason"), reasons, right=("rollouts",)))
    compared = {name: told for name, told in done.rewards.items() if told["agreement"]}
    if compared:
        out.print(_agreement(compared))
        for name, told in compared.items():
            _print_worst(out, name, told)
    if done.resumed:
        note(f"{done.resumed} rollouts had been scored before the interruption")
    dropped = f", {done.rows - done.kept} rollouts dropped" if done.kept < done.rows else ""
    note(f"{done.seconds:.1f} s{dropped}" + (f"; written: {done.out}" if done.out else ""))


def _line(told: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(told["scored"]), str(told["rows"] - told["scored"]), _number(told["mean"]), _number(told["sd"]),
        _share(told["tied_groups"]), _time(told["seconds_p50"]), _time(told["seconds_p99"]),
        _share(told["cached"] / told["rows"] if told["rows"] else None),
    )  # fmt: skip


def _top(reasons: Mapping[str, int], most: int = 8) -> list[tuple[str, int]]:
    """The commonest reasons; the others together."""
    items = list(reasons.items())
    rest = sum(count for _, count in items[most:])
    return items[:most] + ([(f"{len(items) - most} other reasons", rest)] if rest else [])


def _agreement(compared: Mapping[str, Mapping[str, Any]]) -> Any:
    head = (
        "reward",
        "old scores",
        "both",
        "equal",
        "new - old",
        "rank correlation",
        "order kept",
        "reversed",
    )
    rows = []
    for name, told in compared.items():
        a = told["agreement"]
        shares = (_share(a["order_kept"]), _share(a["order_reversed"]))
        gap = _number(a["mean_difference"], "+")
        rows.append((name, told["old"], a["both"], _share(a["equal"]), gap, _number(a["spearman"]), *shares))
    title = "agreement with old scores (order: pairs in a group that the old scores told apart)"
    return table(title, head, rows, right=head[2:])


def _print_worst(out: Any, name: str, told: Mapping[str, Any]) -> None:
    worst = told["agreement"]["differ_most"]
    if worst:
        rows = [
            (each.get("place", each["row"]), _number(each["old"]), _number(each["new"]), _cut(each))
            for each in worst
        ]
        head = ("where", "old", "new", "completion")
        out.print(table(f"{name}: rollouts that differ most", head, rows, right=("old", "new")))


def _cut(each: Mapping[str, Any]) -> str:
    text = " ".join(each.get("completion", "").split())
    return text if len(text) <= 100 else text[:97] + "..."


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _time(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{1e6 * value:.0f} µs"
        if value < 1e-3
        else f"{1e3 * value:.1f} ms"
        if value < 1
        else f"{value:.1f} s"
    )

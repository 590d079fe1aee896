"""The `concordant` command: verbs, and errors as one clear paragraph with an exit code.

Exit codes: 0 all is well; 1 a finding (a refuted claim, a run that failed); 2 wrong use (an unknown name, data that
cannot be used); 3 a fault of this program; 130 interrupted.
"""

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from concordant.cli import board, compare, explain, report, run, score, show
from concordant.cli import list as listing

HELP = """Reward design and credit assignment for RL post-training.

Compose a method from tested parts, compare it with its baseline on a small real world, and explain every rollout's
credit. Start with: concordant list, concordant show gdpo, concordant compare gdpo --profile smoke.

Exit codes: 0 well; 1 a finding (refuted claim, failed run); 2 wrong use; 3 a fault of concordant; 130 interrupted.
"""


class Verbs(TyperGroup):
    """The verbs in the order a reader meets them, and what becomes of an exception."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Keep the order of registration."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; turn what it raises into a paragraph and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("\ninterrupted; the same command goes on where it stopped", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("typer", "click"):
                raise
            raise typer.Exit(_explain_error(error, ctx.params.get("debug", False))) from error


def _explain_error(error: Exception, debug: bool) -> int:
    """Print an error; return the exit code."""
    from concordant.core.errors import ConcordantError

    if debug:
        traceback.print_exception(error)
    if isinstance(error, ConcordantError):
        typer.echo(f"error: {error}", err=True)
        return 2
    if isinstance(error, OSError) and error.filename:
        typer.echo(f"error: {error.filename}: {error.strerror}", err=True)
        return 2
    where = "" if debug else " Run again with --debug for the traceback, and please report it."
    typer.echo(f"error: concordant failed with {type(error).__name__}: {error}.{where}", err=True)
    return 3


app = typer.Typer(
    cls=Verbs,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from concordant import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error (may stand anywhere)."),
) -> None:
    pass


app.command("list")(listing.verb)
app.command("show")(show.verb)
app.command("run")(run.verb)
app.command("compare")(compare.verb)
app.command("board")(board.verb)
app.command("score")(score.verb)
app.command("explain")(explain.verb)
app.command("report")(report.verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `--debug` may stand before or after the verb."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in words:
        words.remove("--debug")
        words.insert(0, "--debug")
    app(words, prog_name="concordant")

"""The command line: flags in, Rich output out. One file per command; nothing is computed here."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final

import typer

from cohortseg import __version__
from cohortseg.cli import compare, evaluate, export, infer, info, interrupt, report, sample, scan, train
from cohortseg.cli.console import print_error, results, set_verbosity
from cohortseg.errors import CohortSegError, ConfigError

_HOW_TO_GO_ON: Final = {
    "infer": "; run the same command again to go on where it stopped",
    "export": "; run the same command again to go on where it stopped",
    "compare": "; run the same command again to go on where it stopped",
    "train": "; the same command with --resume goes on where it stopped",
}
"""Advice after an interruption, by command; the other commands start over."""
_ANYWHERE: Final = frozenset({"-q", "--quiet", "-v", "--verbose"})
"""Options of the program that are also accepted after a command, where most people write them."""
_EMPTY: Final = re.compile(r"(--[a-z-]+=)?")
"""An argument that an unset variable of the shell leaves."""
_LINKS: Final = "Symlink loop"
"""How the message of `Path.resolve` begins where links lead to themselves, before Python 3.13."""
_ADVICE: Final = dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), ("give another path", ConfigError.exit_code)) | (
    dict.fromkeys(
        (errno.ENOTCONN, errno.ESTALE, errno.EIO), ("make its storage readable and run the same command again", 1)
    )
)
"""What to do about errors of paths that a user gives and of storage that has gone, and the exit code."""
_EPILOG: Final = "Every command takes -q (results and errors only) and -v (details), too."


@contextmanager
def _boundary(ctx: Any = None) -> Iterator[None]:
    """Turn an error meant for the user into one line on stderr and an exit code; anything else keeps its traceback."""
    try:
        yield
    except CohortSegError as error:
        print_error(str(error))
        raise typer.Exit(error.exit_code) from None
    except PermissionError as error:  # in a folder without rights, even whether a file exists is unknown
        print_error(f"{error.filename or 'a file'}: {error.strerror}; you have no rights to it or to its folder")
        raise typer.Exit(ConfigError.exit_code) from None
    except OSError as error:
        if error.filename is None or error.errno not in _ADVICE:
            raise
        advice, code = _ADVICE[error.errno]
        print_error(f"{error.filename}: {error.strerror}; {advice}")
        raise typer.Exit(code) from None
    except RuntimeError as error:
        if not str(error).startswith(_LINKS):
            raise
        print_error(f"{error}; give another path")
        raise typer.Exit(ConfigError.exit_code) from None
    except MemoryError:
        print_error("memory ran out; give the program more, or let less run beside it")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):  # a second one changes nothing
            print_error(f"interrupted{_HOW_TO_GO_ON.get(ctx and ctx.invoked_subcommand, '')}")
        raise typer.Exit(interrupt.EXIT_CODE) from None


class _Group(typer.core.TyperGroup):
    """The program, whose own options may stand before or after the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(_EMPTY.fullmatch(argument) for argument in args):
            raise typer.BadParameter("an argument is empty: is a variable of your shell not set?")
        end = args.index("--") if "--" in args else len(args)
        found = [argument for argument in args[:end] if argument in _ANYWHERE]
        rest = [argument for argument in args[:end] if argument not in _ANYWHERE]
        return super().parse_args(ctx, found + rest + args[end:])

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _boundary():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _boundary(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    name="cohortseg",
    help="COVID-19 lesion burden from whole cohorts of chest CT. Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(value: bool) -> None:
    if value:
        results.print(f"cohortseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also details and tracebacks of failed series.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_verbosity(quiet=quiet, verbose=verbose)


for _command in (sample, scan, train, evaluate, compare, infer, report, export, info):
    app.command(epilog=_EPILOG)(getattr(_command, _command.__name__.rsplit(".", 1)[-1]))


def main() -> None:
    """Run the program."""
    interrupt.listen()
    os.environ["MPLBACKEND"] = "agg"  # Jupyter's own, which its shell commands inherit, may not be installed here
    try:
        app()
    except KeyboardInterrupt:  # before the command line is read
        print_error("interrupted")
        sys.exit(interrupt.EXIT_CODE)
    finally:
        interrupt.leave()

"""Printing for all commands: messages and progress on stderr, results on stdout."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from cohortseg.cli.interrupt import heed
from cohortseg.errors import CohortSegError
from cohortseg.progress import Report, silent

for _name in ("stdin", "stdout", "stderr"):  # some schedulers start programs with these closed
    if getattr(sys, _name) is None:
        setattr(sys, _name, Path(os.devnull).open("r" if _name == "stdin" else "w"))  # noqa: SIM115

if not os.environ.get("COLUMNS", "").strip("0"):  # what starts a program without a terminal may say 0: not known
    os.environ.pop("COLUMNS", None)

_PLAIN_WIDTH: Final = 120
"""Width of tables that go to a file or a pipe, unless COLUMNS says otherwise."""


class StdoutError(CohortSegError):
    """Standard output that cannot be written."""

    def __init__(self, what: str | None) -> None:
        super().__init__(f"standard output cannot be written: {what}; what is in files is whole")


def _discard(stream: TextIO) -> None:
    """Let a stream that cannot be written lead nowhere: what is left in its buffer would fail again at the exit."""
    descriptor = stream.fileno()
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


class _Out(Console):
    """Standard output."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; on a full disk, end the program with one line."""
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard(sys.stdout)
            raise StdoutError(error.strerror) from error


class _Messages:
    """Standard error, whatever it is now; what cannot be written is dropped, since no work is to be lost for it.

    As much of a `TextIO` as consoles need. It is no `io.IOBase`: those flush when they are deleted, at the exit of the
    interpreter too, when the names used here are gone.
    """

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
            return len(text)
        with suppress(OSError, ValueError):
            _discard(self._stream)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    @property
    def _stream(self) -> TextIO:
        """While a bar is shown, rich's stand-in for standard error writes to the console, and so to this."""
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream


results = _Out(
    highlight=False, emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PLAIN_WIDTH
)
"""Results: standard output."""
_messages: Final = cast("TextIO", _Messages())
err = Console(file=_messages, highlight=False, emoji=False)
"""Messages and progress: standard error."""

_PLAIN_EVERY_S = 15.0


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set what is shown: errors only, messages, or messages and details."""
    err.quiet = quiet
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours_or_an_error)
    logging.getLogger("cohortseg").setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)


def _is_ours_or_an_error(record: logging.LogRecord) -> bool:
    """Keep our records and errors of libraries, but none of pydicom: it quotes headers, and its errors become ours."""
    package = record.name.split(".")[0]
    return package == "cohortseg" or (record.levelno >= logging.ERROR and package != "pydicom")


def print_error(message: str) -> None:
    """Print one error line on stderr, also when quiet."""
    Console(file=_messages, highlight=False, emoji=False, soft_wrap=True).print(
        f"[bold red]error:[/] {escape(message)}"
    )


def number(value: float | None, digits: int) -> str:
    """Return a number as text; a dash where nothing was measured."""
    return "-" if value is None else f"{value:z.{digits}f}"


def name_of(folder: Path) -> str:
    """Return the name of a folder as it was given: that of a link, not of its target, whose name nobody typed."""
    name = folder.absolute().name
    return folder.resolve().name if name == ".." else name


def say(message: str) -> None:
    """Print one message on stderr unless quiet."""
    err.print(escape(message), soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Show progress with time left: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

    Each report from the main thread also raises an interruption that was lost (`heed`).
    """
    with _shown(title) as show:

        def report(done: int, total: int, text: str) -> None:
            heed()
            show(done, total, text)

        yield report


@contextmanager
def _shown(title: str) -> Iterator[Report]:
    if err.quiet:
        yield silent
        return
    if not err.is_terminal:
        yield _plain_reporter(title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=escape(text))


def _plain_reporter(title: str) -> Report:
    last = time.monotonic()
    first: tuple[float, int, int] | None = None
    before = 0

    def report(done: int, total: int, text: str) -> None:
        nonlocal first, last, before
        now = time.monotonic()
        # The rate counts from the first report: starting takes time, and a resumed training has iterations already.
        # It starts anew when other things are counted (files, then series).
        if first is None or first[2] != total or done < before:
            first = (now, done, total)
        before = done
        if now - last < _PLAIN_EVERY_S:
            return
        last = now
        rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate and total else ""
        err.print(escape(f"{title}: {done}/{total}{left} {text}".rstrip()), soft_wrap=True)

    return report

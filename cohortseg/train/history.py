"""The history of a run: one JSON object per line, and the same numbers for TensorBoard."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from cohortseg.store.documents import parse_json
from cohortseg.store.files import write_file

HISTORY = "history.jsonl"


class History:
    """Writes the history; only one worker has one.

    Parameters
    ----------
    run
        The run's folder.
    iteration
        Iterations already done: later lines, of an interrupted run, are dropped.
    """

    def __init__(self, run: Path, iteration: int) -> None:
        self._path = run / HISTORY
        kept = [row for row in read_history(run) if row["iteration"] <= iteration]
        write_file(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=iteration + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Add one line; ``iteration`` must be among its keys."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for name, value in row.items():
            if name != "iteration":
                self._board.add_scalar(name, value, row["iteration"])
        self._board.flush()  # lines that a killed run still holds in memory are lost

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._board.close()


def read_history(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's history so far, without damaged ones and one still being written."""
    path = run / HISTORY
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("iteration"), int)]

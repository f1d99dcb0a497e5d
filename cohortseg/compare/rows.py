"""What is compared: the rows of the paper's table 2, a student of teachers, and the folds of the labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cohortseg.config import TrainConfig
from cohortseg.errors import ConfigError
from cohortseg.store.documents import parse_json

BASELINE: Final = "plain"
"""The row that gains are measured against: supervised training of the same network, with as many iterations as the
rows of table 2 have."""
PHASE_1: Final = "-phase1"
"""Suffix of a row's model as it stood before phase 2."""


@dataclass(frozen=True)
class Contributions:
    """Which of the paper's three contributions a row has, or how many teachers."""

    vq_branch: bool
    """VVM: the VQ-VAE branch."""
    proportion: bool
    """Prop: the proportion loss."""
    semi_supervised: bool
    """SSA: phase 2."""
    num_teachers: int = 0
    """No contribution of the paper: networks of the row plain, of other seeds, that label the unlabelled slices."""


ROWS: Final = {
    BASELINE: Contributions(vq_branch=False, proportion=False, semi_supervised=False),
    "vvm": Contributions(vq_branch=True, proportion=False, semi_supervised=False),
    "prop": Contributions(vq_branch=False, proportion=True, semi_supervised=False),
    "ssa": Contributions(vq_branch=False, proportion=False, semi_supervised=True),
    "vvm+prop": Contributions(vq_branch=True, proportion=True, semi_supervised=False),
    "ssa+prop": Contributions(vq_branch=False, proportion=True, semi_supervised=True),
    "full": Contributions(vq_branch=True, proportion=True, semi_supervised=True),
    "student": Contributions(vq_branch=False, proportion=False, semi_supervised=False, num_teachers=4),
}
"""The rows of table 2, by the paper's abbreviations, and one like the packaged model (`train --preset student`)."""

FOLDS: Final[tuple[frozenset[str], ...]] = tuple(
    map(frozenset, parse_json((Path(__file__).parent / "folds.json").read_text(encoding="utf-8"))["folds"])
)
"""Names of the images that each fold holds out; slices of one scan lie in one fold."""


def row_config(base: TrainConfig, row: str) -> TrainConfig:
    """Return the settings of a row; without phase 2, phase 1 also gets that phase's iterations, so none trains less.

    A student gets half as many again: only half of each of its batches has readers' labels.
    """
    has = ROWS[row]
    iterations = base.supervised_iterations + (0 if has.semi_supervised else base.adversarial_iterations)
    batch_pseudo = base.batch_labeled // 2 if has.num_teachers else 0
    return replace(
        base,
        batch_labeled=base.batch_labeled - batch_pseudo,
        batch_pseudo=batch_pseudo,
        model=replace(base.model, vq_branch=has.vq_branch),
        proportion_weight=base.proportion_weight if has.proportion else 0.0,
        semi_supervised=has.semi_supervised,
        supervised_iterations=iterations * 3 // 2 if has.num_teachers else iterations,
    )


def teacher_configs(base: TrainConfig, row: str) -> list[TrainConfig]:
    """Return the settings of the teachers of a row, each with a seed of its own; none for most rows."""
    plain = row_config(base, BASELINE)
    return [replace(plain, seed=base.seed + number) for number in range(ROWS[row].num_teachers)]


def check_rows(rows: Sequence[str], folds: Sequence[int], base: TrainConfig) -> None:
    """Refuse unknown or repeated rows and folds, and settings that would turn a row into another one.

    Raises
    ------
    ConfigError
        If there are any; the message names the known rows or folds, or the setting.
    """
    for given, known, what in ((rows, list(ROWS), "row"), (folds, range(1, len(FOLDS) + 1), "fold")):
        unknown = [str(item) for item in given if item not in known]
        if unknown or not given:
            raise ConfigError(f"no such {what}: {', '.join(unknown) or 'none given'}; use {', '.join(map(str, known))}")
        if len(set(given)) < len(given):
            raise ConfigError(f"a {what} is given twice: {', '.join(map(str, given))}")
    if not (base.semi_supervised and base.model.vq_branch):
        raise ConfigError("semi_supervised and vq_branch are what rows decide: leave them out of --config")
    if base.proportion_weight == 0 and any(ROWS[row].proportion for row in rows):
        raise ConfigError("proportion_weight must be above 0 for rows with the proportion loss")
    if base.batch_pseudo:
        raise ConfigError("batch_pseudo must be 0: the row student takes half of batch_labeled for it")
    if base.batch_labeled < 2 and any(ROWS[row].num_teachers for row in rows):
        raise ConfigError("batch_labeled must be 2 or more for the row student, half of whose slices teachers label")
    if base.saturation_patience:
        raise ConfigError("saturation_patience must be 0: a phase that ends early gives rows of different length")
    for row in rows:
        row_config(base, row)  # raises if settings do not fit together once the row has changed some

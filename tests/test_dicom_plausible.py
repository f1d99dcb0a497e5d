"""What cannot be HU of one chest raises a flag, or is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from cohortseg.dicom.plausible import check_hu
from cohortseg.errors import NotEvaluableError
from cohortseg.synthetic.quirk_files import chest_hu
from cohortseg.volume import HU_MIN


def test_padding_is_no_air() -> None:
    volume = np.zeros((1, 10, 10), dtype=np.int16)
    volume[:, :5] = HU_MIN
    with pytest.raises(NotEvaluableError, match=r"0\.0 % are like air, 50\.0 % like soft tissue"):
        check_hu(volume, "0123")


def chest() -> NDArray[np.int16]:
    """A noisy chest (8, 48, 48), HU, that changes along the patient."""
    hu = chest_hu((8, 48, 48))
    return (hu + np.random.default_rng(0).normal(0, 15, hu.shape)).astype(np.int16)


@pytest.mark.parametrize(("pad", "fits"), [(100, True), (400, False)])
def test_a_small_patient_in_a_wide_field_is_one(pad: int, *, fits: bool) -> None:
    around = [(0, 0), (pad, pad), (pad, pad)]
    wide = np.pad(chest(), around, constant_values=-1000)
    soft = np.mean((wide >= -200) & (wide <= 200))
    assert (soft < 0.05, soft >= 0.01) == (True, fits)
    if fits:
        assert check_hu(wide, "0123") == ()
    else:
        with pytest.raises(NotEvaluableError, match="like soft tissue"):
            check_hu(wide, "0123")
    with pytest.raises(NotEvaluableError, match="like soft tissue"):
        check_hu(np.where(wide > -500, wide + np.int16(1000), wide), "0123")


def test_a_little_soft_tissue_among_much_that_is_denser_is_no_small_patient() -> None:
    wide = np.pad(chest(), [(0, 0), (30, 30), (30, 30)], constant_values=-1000)
    dense = np.where((wide > -500) & (np.arange(108) % 4 > 0), wide + np.int16(1000), wide)
    assert 0.01 <= np.mean((dense >= -200) & (dense <= 200)) < 0.05
    with pytest.raises(NotEvaluableError, match="like soft tissue"):
        check_hu(dense, "0123")


def with_slice(hu: NDArray[np.int16], z: int, image: NDArray[np.int16]) -> NDArray[np.int16]:
    return np.where(np.arange(len(hu))[:, None, None] == z, image, hu).astype(np.int16)


@pytest.mark.parametrize(
    ("damage", "flags"),
    [
        (lambda hu: hu, ()),
        (lambda hu: np.concatenate([hu[:6], np.full_like(hu[6:], -1024)]), ("blank_slices",)),
        (lambda hu: hu[[0, 1, 2, 2, 4, 5, 6, 7]], ("repeated_slices",)),
        (lambda hu: with_slice(hu, 4, np.random.default_rng(1).integers(-1024, 1000, (48, 48))), ("odd_slices",)),
        (lambda hu: with_slice(hu, 7, 2 * hu[7] + 1024), ("odd_slices",)),
        (lambda hu: with_slice(hu, 7, hu[7] + np.int16(100)), ()),
        (lambda hu: with_slice(hu, 4, np.roll(hu[4], 24, axis=1)), ("odd_slices",)),
        (lambda hu: hu + np.int16(120), ("hu_shifted",)),
        (lambda hu: ((hu + 1024) * 0.8 - 1024).astype(np.int16), ("hu_shifted",)),
        (lambda hu: (0.9 * hu).astype(np.int16), ("hu_shifted",)),
        (lambda hu: hu[:, 12:36, 12:36], ()),
        (lambda hu: np.maximum(hu, -900), ()),
        (lambda hu: np.where(np.arange(48) % 40 < 4, np.clip(hu + 120, -1000, -860), hu).astype(np.int16), ()),
        (lambda hu: np.random.default_rng(2).permuted(hu, axis=1), ("odd_slices",)),
        (lambda hu: np.broadcast_to(hu[:1], hu.shape), ()),
        (lambda hu: hu + np.int16(70) * ((hu < -930) & (np.arange(8) % 2 == 1)[:, None, None]), ()),
    ],
    ids=[
        *(
            "none",
            "blank end",
            "repeated",
            "noise",
            "slope 2",
            "an end",
            "moved",
            "shifted",
            "slope .8",
            "all .9",
            "cropped",
            "clipped",
            "lung at the border",
        ),
        *("nothing alike", "no noise", "noise of air"),
    ],
)
def test_slices_that_cannot_be_right_raise_a_flag(
    damage: Callable[[NDArray[np.int16]], NDArray[np.int16]], flags: tuple[str, ...]
) -> None:
    assert check_hu(damage(chest()), "0123") == flags


@pytest.mark.parametrize(("z", "offset_hu", "is_odd"), [(4, 70, False), (4, 90, True), (7, 140, False), (7, 190, True)])
def test_a_slice_is_odd_from_80_hu_on_and_the_last_from_twice_that(z: int, offset_hu: int, *, is_odd: bool) -> None:
    moved = with_slice(chest(), z, chest()[z] + np.int16(offset_hu))
    assert check_hu(moved, "0123") == (("odd_slices",) if is_odd else ())
    if is_odd:
        with pytest.raises(NotEvaluableError, match="1 of 8 slices have another rescale than most"):
            check_hu(moved, "0123", ["other" if one == z else "same" for one in range(8)])


def test_air_is_dense_though_a_table_lies_at_the_border_and_lung_at_all_of_it_is_no_air() -> None:
    dense = (0.9 * chest()).astype(np.int16)
    dense[:, -3:] = 45
    assert check_hu(dense, "0123") == ("hu_shifted",)
    rng = np.random.default_rng(0)
    border = rng.integers(-900, -600, (8, 24, 24))
    border = np.where(rng.random(border.shape) < 0.4, rng.integers(-930, -920, border.shape), border)
    lung = np.pad(np.maximum(chest()[:, 14:34, 14:34], -920), [(0, 0), (2, 2), (2, 2)], constant_values=HU_MIN)
    assert check_hu(np.where(lung == HU_MIN, border, lung).astype(np.int16), "0123") == ()


def test_blank_slices_between_others_and_slices_of_another_rescale_are_refused() -> None:
    with pytest.raises(NotEvaluableError, match="2 of 8 slices, between others"):
        check_hu(with_slice(with_slice(chest(), 3, np.int16(0)), 4, np.int16(0)), "0123")
    shifted = with_slice(chest(), 3, chest()[3] + np.int16(1024))
    assert check_hu(shifted, "0123", ["same"] * 8) == ("odd_slices",)
    with pytest.raises(NotEvaluableError, match="1 of 8 slices have another rescale than most"):
        check_hu(shifted, "0123", ["same"] * 3 + ["other"] + ["same"] * 4)


@pytest.mark.parametrize(("count", "wrong"), [(4, [1]), (12, [1, 4, 7, 10]), (12, [2, 5, 6, 9])])
def test_more_wrong_slices_are_no_less_wrong(count: int, wrong: list[int]) -> None:
    hu = chest_hu((count, 48, 48)).astype(np.int16)
    hu[wrong] += 1024  # which makes those beside them odd, too
    rescales = ["other" if z in wrong else "same" for z in range(count)]
    with pytest.raises(NotEvaluableError, match=f"{len(wrong)} of {count} slices have another rescale than most"):
        check_hu(hu, "0123", rescales)
    assert "odd_slices" in check_hu(hu, "0123")


@pytest.mark.parametrize("other", ["another place", "denser lungs"])
def test_two_scans_by_turns_are_refused(other: str) -> None:
    one = chest_hu((12, 48, 48)).astype(np.int16)
    two = np.roll(one, 3, axis=0) if other == "another place" else np.where(one < -400, one + 150, one)
    turns = np.stack([one, two], axis=1).reshape(24, 48, 48).astype(np.int16)
    with pytest.raises(NotEvaluableError, match="two scans of one place") as refused:
        check_hu(turns, "0123")
    assert refused.value.qc_flags == ("interleaved_scans",)
    assert check_hu(one, "0123") == ()


def test_slices_of_one_value_each_are_refused() -> None:
    values = np.array([-900, 0, -900, 0], dtype=np.int16)
    with pytest.raises(NotEvaluableError, match="every slice holds one value"):
        check_hu(np.broadcast_to(values[:, None, None], (4, 8, 8)), "0123")

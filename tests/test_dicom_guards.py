"""What files claim is checked before memory is taken, and what headers name never becomes a path."""

import io
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from phantoms import write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.guards import BoundedFile, codestream_size, inflates_too_far
from cohortseg.dicom.repair import resample_z, untilt
from cohortseg.dicom.scan import scan_cohort
from cohortseg.identity import series_key
from cohortseg.volume import HU_MIN


def test_a_read_asks_for_no_more_than_the_file_holds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with BoundedFile(tmp_path / "file") as file:
        assert file.read(2) == b"12"
        assert file.read(2**62) == b"345"  # plain files raise MemoryError here
        assert file.read(2**62) == b""


def test_deflated_data_are_measured_before_they_are_inflated(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, shape=(1, 64, 64), transfer_syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    size = len(zlib.decompress(content[meta_end:], -zlib.MAX_WBITS))
    assert not inflates_too_far(io.BytesIO(content), size)
    assert inflates_too_far(io.BytesIO(content), size - 1)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = content[:meta_end] + bomb.compress(bytes(3 << 20)) + bomb.flush()
    assert inflates_too_far(io.BytesIO(data), 1 << 20)
    assert not inflates_too_far(io.BytesIO(data), 4 << 20)
    for variant in (data[132:], data[:132] + data[144:]):  # without preamble; without the length of the meta group
        assert inflates_too_far(io.BytesIO(variant), 1 << 20)
        assert not inflates_too_far(io.BytesIO(variant), 4 << 20)


def test_sizes_of_code_streams() -> None:
    jpeg = b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + b"\xff\xc3\x00\x0b\x0c\x00\x40\x00\x50\x01\x01\x11\x00"
    assert codestream_size(jpeg) == (64, 80)
    assert codestream_size(jpeg.replace(b"\xff\xc3", b"\xff\xf7")) == (64, 80)  # JPEG-LS
    numbers = (80 + 3, 64 + 2, 3, 2)  # right, bottom, left, top of the image on its grid
    siz = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + b"".join(number.to_bytes(4, "big") for number in numbers)
    assert codestream_size(siz) == (64, 80)
    assert codestream_size(b"\xff\xd8\xff") is None
    assert codestream_size(b"") is None


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "CON", "a\0b", "\u202eexe.dcm", "x" * 10_000, "$(id)"]
)
def test_no_identifier_becomes_a_path(tmp_path: Path, name: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", series_key(name))
    assert series_key(name) != series_key(name, 2)


def test_identifiers_reach_tables_without_control_characters(tmp_path: Path) -> None:
    write_series(tmp_path, attributes={"PatientID": "P\x1b[31m1", "SeriesDescription": "a\nb"})
    (record,) = scan_cohort(tmp_path).series
    assert (record.patient_id, record.series_description) == ("P[31m1", "ab")


def test_a_reason_quotes_only_a_little_of_a_header(tmp_path: Path) -> None:
    for path in write_series(tmp_path, attributes={"RescaleType": "HU_MOD"}):
        path.write_bytes(path.read_bytes().replace(b"CS\x02\x00CT", b"CS\x02\x00\x1b\\"))
    (record,) = scan_cohort(tmp_path).series
    assert (record.decision, len(record.reason or "")) == ("skipped", len("modality is ?, not CT"))


def test_a_volume_too_large_is_skipped_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, shape=(4, 64, 80), transfer_syntax=JPEG2000Lossless)
    monkeypatch.setattr("cohortseg.dicom.rules.MAX_VOXELS", 4 * 64 * 80 - 1)
    (record,) = scan_cohort(tmp_path).series
    assert record.reason == "volume must be at most 20479 voxels, got 4 x 64 x 80"


def test_mutated_files_end_in_a_row_or_a_reason() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "hostile_input.py"
    done = subprocess.run(
        [sys.executable, str(script), "--files", "60", "--seed", "7"], capture_output=True, text=True, check=False
    )
    result = json.loads(done.stdout)
    assert (done.returncode, result["crashes"], sum(result["outcomes"].values())) == (0, [], 60)
    assert len(result["outcomes"]) >= 3  # some files were still read, some were not


def test_resampling_by_hand() -> None:
    volume = np.array([0, 100, 400], dtype=np.int16)[:, None, None]
    even, nearest = resample_z(volume, np.array([2.0, 6.0]), 2.0)
    assert even[:, 0, 0].tolist() == [0, 100, 200, 300, 400]
    assert nearest.tolist() == [0, 1, 1, 2, 2]


def test_untilting_by_hand() -> None:
    # Each slice starts 2 rows (of 1.5 mm) further back: on the upright grid it is moved by 2 rows.
    volume = np.arange(2 * 3, dtype=np.int16).reshape(2, 3, 1)
    affine = np.diag([5.0, 1.5, 1.0, 1.0])[[2, 1, 0, 3]]
    upright, positions = untilt(volume, np.array([[0, 0, 0], [0, 3.0, 5.0]]), affine)
    pad = HU_MIN
    assert upright[:, :, 0].tolist() == [[0, 1, 2, pad, pad], [pad, pad, 3, 4, 5]]
    np.testing.assert_allclose(positions, [[0, 0, 0], [0, 0, 5]])


def test_a_repair_changes_the_fingerprint_so_that_a_run_notices(tmp_path: Path) -> None:
    from cohortseg.config import ScanConfig

    write_series(tmp_path, shape=(5, 8, 8), positions=[(0, 0, z) for z in (0, 2, 4, 7, 10)])
    repaired = [scan_cohort(tmp_path, config=ScanConfig(repair=("resample",))).series[0] for _ in range(2)]
    assert repaired[0].fingerprint == repaired[1].fingerprint != scan_cohort(tmp_path).series[0].fingerprint
    volume = read_volume(repaired[0], tmp_path)
    assert (repaired[0].spacing_z_mm, volume.spacing_mm[0], len(volume.volume_hu)) == (2.5, 2.5, 5)
    assert volume.affine[2, 0] == pytest.approx(2.5)

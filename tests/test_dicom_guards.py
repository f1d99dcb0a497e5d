"""What files claim is checked before memory is taken, and what headers name never becomes a path."""

import io
import json
import re
import subprocess
import sys
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import write_series
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.guards import BoundedFile, codestream_shape, inflates_too_far
from cohortseg.dicom.repair import resample_z, untilt
from cohortseg.dicom.scan import scan_cohort
from cohortseg.identity import series_key, without_path
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


def test_deflated_files_that_expand_too_far_count_as_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", series="2", transfer_syntax=DeflatedExplicitVRLittleEndian)
    assert scan_cohort(tmp_path).num_unreadable == 0
    monkeypatch.setattr("cohortseg.dicom.headers.inflates_too_far", partial(inflates_too_far, limit=1000))
    assert scan_cohort(tmp_path).num_unreadable == 4


def _box(kind: bytes, content: bytes, *, extended: bool = False) -> bytes:
    if extended:
        return b"\0\0\0\1" + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def _siz(right: int, bottom: int, left: int = 0, top: int = 0, channels: int = 1) -> bytes:
    tile = b"".join(number.to_bytes(4, "big") for number in (right, bottom, 0, 0))
    grid = b"".join(number.to_bytes(4, "big") for number in (right, bottom, left, top))
    return b"\xff\x4f\xff\x51\x00\x29\x00\x00" + grid + tile + channels.to_bytes(2, "big")


FRAME_HEADER = b"\xff\xc3\x00\x0b\x0c\x00\x40\x00\x50\x01\x01\x11\x00"
JPEG = b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + FRAME_HEADER + b"\xff\xda\x00\x08"
SIGNATURE = _box(b"jP  ", b"\r\n\x87\n")


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEGLosslessSV1, JPEG),
        (JPEGLosslessSV1, JPEG.replace(FRAME_HEADER, b"\xff" + FRAME_HEADER)),  # a fill byte: T.81 B.1.1.2
        (JPEGLSLossless, JPEG.replace(b"\xff\xc3", b"\xff\xf7")),
        (JPEG2000, _siz(80 + 3, 64 + 2, 3, 2)),
        (HTJ2KLossless, _siz(80, 64)),
        (JPEG2000, SIGNATURE + _box(b"free", bytes(5000)) + _box(b"jp2c", _siz(80, 64))),
        (JPEG2000, SIGNATURE + _box(b"free", _siz(8, 8), extended=True) + b"\0\0\0\0jp2c" + _siz(80, 64)),
        (JPEG2000, SIGNATURE + _box(b"jp2c", _siz(80, 64), extended=True)),
        # What looks like JPEG 2000 in a comment of a JPEG is none.
        (JPEGLosslessSV1, JPEG[:2] + b"\xff\xfe\x00\x2c" + _siz(8, 8) + JPEG[2:]),
    ],
)
def test_shapes_of_code_streams(syntax: UID, frame: bytes) -> None:
    assert codestream_shape(frame, syntax) == (64, 80, 1)


def test_channels_of_code_streams() -> None:
    assert codestream_shape(_siz(80, 64, channels=4000), JPEG2000) == (64, 80, 4000)
    assert codestream_shape(JPEG.replace(b"\x01\x01\x11", b"\x03\x01\x11"), JPEGLosslessSV1) == (64, 80, 3)


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (JPEGLosslessSV1, b""),
        (JPEGLosslessSV1, b"\xff\xd8\xff"),
        (JPEGLosslessSV1, b"\xff\xd8junk" + JPEG[2:]),
        # At these, GDCM ends the process.
        (JPEGLosslessSV1, JPEG.replace(b"\xff\xda", b"junk\xff\xda")),
        (JPEGLosslessSV1, JPEG.replace(b"\xff\xda", b"\xff\x00\x00\x04ab\xff\xda")),
        (JPEGLosslessSV1, JPEG.replace(b"\x0b\x0c", b"\x0b\xd8")),
        (JPEGLosslessSV1, JPEG.replace(FRAME_HEADER, FRAME_HEADER * 2)),
        (JPEGLosslessSV1, _siz(80, 64)),
        (JPEG2000, JPEG),
        (JPEG2000, b"junk" + _siz(80, 64)),
        (JPEG2000, _siz(80, 64)[:40]),
        (JPEG2000, SIGNATURE + _box(b"free", _siz(80, 64))),
        (JPEG2000, SIGNATURE + b"\0\0\0\0free" + bytes(40)),
    ],
)
def test_a_code_stream_without_a_readable_header_is_not_decoded(syntax: UID, frame: bytes) -> None:
    with pytest.raises(ValueError, match="no readable header"):
        codestream_shape(frame, syntax)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\xff\x4f\xff\x51", SIGNATURE]), st.booleans())
def test_any_code_stream_is_read_or_refused(junk: bytes, start: bytes, jpeg2000: bool) -> None:
    begins = (b"\xff\x4f\xff\x51", SIGNATURE[:8]) if jpeg2000 else b"\xff\xd8"
    with suppress(ValueError):
        shape = codestream_shape(start + junk, JPEG2000 if jpeg2000 else JPEGLosslessSV1)
        assert [type(number) for number in shape] == [int] * 3
        assert (start + junk).startswith(begins)


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
    even, _ = resample_z(np.zeros((4, 1, 1), np.int16), np.full(3, 0.7), 0.7)
    assert len(even) == 4, "3 x 0.7 is a little less than 2.1"


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


def test_of_paths_that_begin_alike_the_whole_one_is_left_out_of_a_message():
    paths = ["A", "A: DOE JOHN.dcm"]
    assert without_path("A: DOE JOHN.dcm: no pixel data", paths) == "no pixel data"
    assert without_path("A: no pixel data", paths) == "no pixel data"
    assert without_path("no pixel data", paths) == "no pixel data"

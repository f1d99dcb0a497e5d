"""A pydicom decoder for lossy 12-bit JPEG (processes 2 and 4), in which old archives hold CT.

GDCM reads it, but pydicom's own plugin does not ask it for more than 8 bits. The values equal those of libjpeg-turbo.
"""

from typing import Final

import gdcm
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES: Final = {JPEGExtended12Bit: ("python-gdcm>=3.0.24",)}
"""Transfer syntaxes that the plugin reads, and the packages it needs, in the form pydicom expects of a plugin."""
_LABEL: Final = "gdcm-12-bit"


def is_available(uid: str) -> bool:
    """Tell pydicom whether this plugin reads a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Return one frame's stored values, 16 bits each, little endian.

    Parameters
    ----------
    src
        The frame's code stream.
    runner
        The header's description of the image.

    Raises
    ------
    NotImplementedError
        If the image is not one grey channel of 9 to 12 bits stored in 16.
    ValueError
        If the code stream does not hold that image.
    """
    if runner.samples_per_pixel != 1 or runner.bits_allocated != 16 or not 8 < runner.bits_stored <= 12:
        raise NotImplementedError("only one channel of 9 to 12 bits in 16 is read")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(pixels)
    grey = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    stored = runner.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, runner.pixel_representation))
    frame: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM gives char* as str
    if len(frame) != 2 * runner.rows * runner.columns:
        raise ValueError(f"{len(frame)} bytes for an image of {runner.rows} x {runner.columns}")
    return frame


def register() -> None:
    """Add the decoder to those of pydicom, unless it is there already."""
    decoder = get_decoder(JPEGExtended12Bit)
    if _LABEL not in decoder.available_plugins:
        decoder.add_plugin(_LABEL, (__name__, decode_frame.__name__))

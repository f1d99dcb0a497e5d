"""Masks of a finished run in the formats that viewers and other tools read: DICOM SEG, NIfTI, PNG."""

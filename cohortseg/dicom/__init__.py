"""DICOM: from any tree of files to series, and from a series to a volume in HU."""

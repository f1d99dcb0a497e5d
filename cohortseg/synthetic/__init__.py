"""The sample cohort: synthetic patients with known lesions, written as DICOM."""

"""Segmentation of a cohort: one series in, masks and a row out; in this process or spread over Ray Data."""

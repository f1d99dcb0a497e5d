"""Segmentation of a cohort: one series in, masks and a row out; spread over this process or over Ray Data."""

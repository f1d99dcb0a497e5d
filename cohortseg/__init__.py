"""cohortseg: COVID-19 lesion burden from whole cohorts of chest CT."""

from importlib.metadata import version

__version__ = version("cohortseg")

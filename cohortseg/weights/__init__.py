"""Model files: the one inside the package, and any that training wrote."""

from cohortseg.weights.model_file import (
    Inspection,
    LoadedModel,
    ModelCard,
    Prediction,
    check_finite,
    default_model_path,
    load_model,
    save_model,
)

__all__ = [
    "Inspection",
    "LoadedModel",
    "ModelCard",
    "Prediction",
    "check_finite",
    "default_model_path",
    "load_model",
    "save_model",
]

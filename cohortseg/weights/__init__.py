"""Model files: the one inside the package, and any that training wrote."""

from cohortseg.weights.model_file import (
    LoadedModel,
    ModelCard,
    Prediction,
    check_finite,
    default_model_path,
    load_model,
    save_model,
)

__all__ = [
    "LoadedModel",
    "ModelCard",
    "Prediction",
    "check_finite",
    "default_model_path",
    "load_model",
    "save_model",
]

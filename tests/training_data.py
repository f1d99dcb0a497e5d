"""A tiny data set to train on: discs of two brightnesses on dark lungs, in the COVID-SemiSeg layout or prepared."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cohortseg.config import CanonicalConfig
from cohortseg.datasets.prepared import PreparedData
from cohortseg.datasets.slices import CanonicalSlice, ImageSlice, read_slices

COMPARED_FOLDS = (("0", "1", "11"), ("2", "3"), ("4",))
"""Names of images of the first three folds."""
TINY_RECIPE = """
supervised_iterations = 2
adversarial_iterations = 2
warmup_iterations = 1
batch_labeled = 2
batch_unlabeled = 2
[canonical]
size = 64
[model]
encoder_width = 16
decoder_channels = [16, 16, 16, 16]
codebook_size = 8
"""
"""Settings of a training that takes a second."""


def lesion_slice(seed: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return an upright 8-bit chest slice (lung window) and its label map: two lungs, one GGO and one consolidation."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    gray = np.full((size, size), 230.0)
    lungs = np.zeros((size, size), dtype=bool)
    for centre in (0.27, 0.73):
        lungs |= ((rows - 0.5) / 0.42) ** 2 + ((columns - centre) / 0.2) ** 2 < 1
    gray[lungs] = 75
    labels = np.zeros((size, size), dtype=np.uint8)
    for value, brightness, centre in ((1, 140, 0.27), (2, 225, 0.73)):
        where = (rng.uniform(0.3, 0.7), centre + rng.uniform(-0.05, 0.05))
        spot = np.hypot(rows - where[0], columns - where[1]) < rng.uniform(0.07, 0.12)
        labels[spot & lungs], gray[spot & lungs] = value, brightness
    gray += rng.normal(0, 6, gray.shape)
    return gray.clip(0, 255).astype(np.uint8), labels


def prepared(num_labeled: int = 6, num_unlabeled: int = 6, size: int = 64) -> PreparedData:
    """Return the same as canonical slices, without crop."""

    def tensor(seeds: range) -> torch.Tensor:
        images = [torch.from_numpy(lesion_slice(seed, size)[0] / 255.0)[None].half() for seed in seeds]
        return torch.stack(images) if images else torch.empty(0, 1, size, size, dtype=torch.float16)

    return PreparedData(
        labeled=tensor(range(num_labeled)),
        labels=torch.stack([torch.from_numpy(lesion_slice(seed, size)[1]) for seed in range(num_labeled)]),
        unlabeled=tensor(range(100, 100 + num_unlabeled)),
        labeled_images=("0" * 64,),
        unlabeled_images=("1" * 64,),
        terms="synthetic",
    )


def canonical_of(source: ImageSlice, config: CanonicalConfig) -> CanonicalSlice:
    """Return the network input that is made of an image file."""
    (item,) = read_slices(source, config)
    assert item.canonical is not None
    return item.canonical


def write_covid_semiseg(root: Path, *, num_unlabeled: int = 4, names: tuple[str, ...] = ("1", "2", "3", "14")) -> Path:
    """Write a tiny data set in the official layout: transposed images, as the real ones lie."""
    for part, stems in (
        ("TrainingSet/MultiClassInfection-Train", names),
        ("TestingSet/MultiClassInfection-Test", ("1",)),
    ):
        for folder in ("Imgs", "GT"):
            (root / part / folder).mkdir(parents=True)
        for stem in stems:
            gray, labels = lesion_slice(int(stem) + (1000 if "Test" in part else 0))
            Image.fromarray(gray.T).save(root / part / "Imgs" / f"{stem}.jpg", quality=95)
            Image.fromarray(labels.T).save(root / part / "GT" / f"{stem}.png")
    folder = root / "TrainingSet/LungInfection-Train/Pseudo-label/Imgs"
    folder.mkdir(parents=True)
    for number in range(num_unlabeled):
        gray = lesion_slice(500 + number)[0]
        source = "coronacases_org_001" if number % 2 else "radiopaedia_org_x"
        stored = np.rot90(gray, -1) if number % 2 else gray.T
        Image.fromarray(stored).save(folder / f"Data-1_{source}_{number}.jpg", quality=95)
    return root


class TinyComparison:
    """A tiny data set with images of three folds, and the command over two of them."""

    def __init__(self, folder: Path) -> None:
        self.data = write_covid_semiseg(folder / "COVID-SemiSeg", names=sum(COMPARED_FOLDS, ()))
        self.config = folder / "tiny.toml"
        self.config.write_text(TINY_RECIPE, encoding="utf-8")

    def arguments(self, out: Path, rows: str, folds: str = "1,2") -> list[str]:
        fixed = ["compare", "--data", str(self.data), "--config", str(self.config)]
        return [*fixed, "--rows", rows, "--folds", folds, "-o", str(out)]

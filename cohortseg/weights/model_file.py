"""The model file: safetensors with the networks' weights and, in its header, everything needed to use them."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cohortseg.config import CanonicalConfig, ModelConfig, config_from_mapping
from cohortseg.errors import DivergedError, ModelError
from cohortseg.labels import NUM_CLASSES
from cohortseg.models.device import find_device, has_fast_bf16, limit_threads, reuse_memory
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.fold import fold_batch_norms
from cohortseg.models.segmenter import Segmenter, SegmenterOutput
from cohortseg.models.vqvae import code_counts
from cohortseg.store.documents import parse_json
from cohortseg.store.files import write_file

_FORMAT: Final = 2
_HEADER_KEY: Final = "cohortseg"
_DIGEST: Final = "sha256"
_HASHES: Final = ("training_images", "teachers")
"""Header values that are lists of hashes."""
_NUMBERS: Final = ("semi_weight", "confidence_threshold")
"""Settings of training that are read from the header, beside ``class_offsets`` and ``phase``."""
_DEFAULT_NAME: Final = "default.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The header of a model file."""

    name: str
    """Recipe and data, in words."""
    model: ModelConfig
    """The networks."""
    canonical: CanonicalConfig
    """The input they were trained on."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The training settings."""
    training_images: tuple[str, ...] = ()
    """SHA-256 of every image file that took part in training, labelled or not."""
    teachers: tuple[str, ...] = ()
    """SHA-256 of the model files that labelled unlabelled slices for it."""
    licence: str = ""
    """Terms of the weights."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of cohortseg and torch at training."""


class Prediction(NamedTuple):
    """The output of a model for a batch of canonical slices."""

    prob: torch.Tensor
    """(B, 3, size, size) float32 on the CPU: background, ground-glass opacity, consolidation."""
    confidence: torch.Tensor
    """(B, 1, size, size) float32 on the CPU: the discriminator's probability that a pixel is ground truth."""
    flip_change: torch.Tensor | None = None
    """(B, 1, size, size) float32 on the CPU: 1 where slice and mirror image differ in class, else 0; None: no flips."""


class Inspection(NamedTuple):
    """A prediction, with what the VQ-VAE branch and the discriminator make of the slices."""

    prob: torch.Tensor
    """(B, 3, size, size) float32 on the CPU, as in `Prediction`."""
    confidence: torch.Tensor | None
    """(B, 1, size, size) float32 on the CPU, as in `Prediction`; None: the discriminator was not trained."""
    reconstruction: torch.Tensor | None
    """(B, 1, size, size) float32 in [0, 1] on the CPU, of the slices without their mirror images; None: there is no
    VQ-VAE branch."""
    code_counts: torch.Tensor | None
    """(B, 2, codes) int64 on the CPU: how often the top and the bottom level use each code; None likewise."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to predict."""

    segmenter: Segmenter
    discriminator: Discriminator
    card: ModelCard
    sha256: str
    """Of the model file."""
    device: torch.device
    bf16: bool
    """Whether it predicts in bfloat16."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.card.name

    @cached_property
    def training_images(self) -> frozenset[str]:
        """SHA-256 of every image file that took part in training."""
        return frozenset(self.card.training_images)

    @property
    def has_trained_discriminator(self) -> bool:
        """Whether the discriminator was trained: this happens in phase 2, so a model of phase 1 has no confidence."""
        return bool(self.card.recipe.get("phase") != 1)

    @torch.inference_mode()
    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        """Segment canonical slices, with what the discriminator and the mirror images tell of doubt.

        Parameters
        ----------
        images
            (B, 1, size, size) float32 in [0, 1]; the size is that of ``card.canonical``.
        flips
            Average the probabilities over each slice and its mirror image.

        Raises
        ------
        ValueError
            If the images have other dimensions or another type, or values out of range (HU, not a number).
        """
        prob, flip_change, _ = self._averaged(images, flips=flips)
        return Prediction(prob.cpu(), self._confidence(prob), flip_change)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor, *, flips: bool = False) -> torch.Tensor:
        """Return the probabilities (B, 3, size, size) of `predict` alone: a seventh faster."""
        return self._averaged(images, flips=flips)[0].cpu()

    @torch.inference_mode()
    def inspect(self, images: torch.Tensor, *, flips: bool = False) -> Inspection:
        """Segment canonical slices, with the same number of passes and the same probabilities, and tell of the inside.

        Parameters and errors are those of `predict`.
        """
        prob, _, output = self._averaged(images, flips=flips, reconstruct=True)
        counts = code_counts(output.levels, self.card.model.codebook_size).cpu() if output.levels else None
        return Inspection(
            prob=prob.cpu(),
            confidence=self._confidence(prob) if self.has_trained_discriminator else None,
            reconstruction=None if output.reconstruction is None else output.reconstruction.float().cpu(),
            code_counts=counts,
        )

    def _averaged(
        self, images: torch.Tensor, *, flips: bool, reconstruct: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, SegmenterOutput]:
        """Return probabilities, where the mirror images' classes differ, if they are used, and the first pass's output.

        All but the second is on the device.
        """
        if images.ndim != 4 or images.shape[1] != 1 or not len(images) or images.dtype != torch.float32:
            raise ValueError(f"images must be (B, 1, size, size) float32, got {tuple(images.shape)} {images.dtype}")
        low, high = images.aminmax()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # resizing rounds; NaN fails both
            raise ValueError(f"images must lie in [0, 1], as canonical_batch gives them; got {low:g} to {high:g}")
        batch = images.to(self.device, memory_format=torch.channels_last)
        output = self._output(batch, reconstruct=reconstruct)
        prob = output.logits.softmax(dim=1)
        if not flips:
            return prob, None, output
        mirrored = self._output(batch.flip(-1), reconstruct=False).logits.softmax(dim=1).flip(-1)
        # max, not argmax: over three channels it takes a tenth of the time on the CPU
        classes, mirrored_classes = (item.max(dim=1, keepdim=True).indices for item in (prob, mirrored))
        return (prob + mirrored) / 2, (classes != mirrored_classes).float().cpu(), output

    def _output(self, batch: torch.Tensor, *, reconstruct: bool) -> SegmenterOutput:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output: SegmenterOutput = self.segmenter(batch, reconstruct=reconstruct)
        return output

    def _confidence(self, prob: torch.Tensor) -> torch.Tensor:
        """Return the confidence map (B, 1, size, size) of probabilities on the device, on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            confidence: torch.Tensor = self.discriminator(prob).sigmoid()
        return confidence.float().cpu()


def default_model_path() -> Path:
    """Return the model file inside the package."""
    return Path(str(resources.files("cohortseg.weights") / _DEFAULT_NAME))


def save_model(path: Path, segmenter: Segmenter, discriminator: Discriminator, card: ModelCard) -> None:
    """Write a model file, weights in float16 (float32 where they exceed its range), under a temporary name first.

    Raises
    ------
    DivergedError
        If a weight is not a finite number.
    StoreError
        If the file cannot be written.
    """
    check_finite(segmenter, discriminator)
    tensors = {name: _half(value) for name, value in _tensors(segmenter, discriminator)}
    write_file(path, model_file_bytes(asdict(card), tensors))


def model_file_bytes(card: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the content of a model file: header (`ModelCard`), weights by name, and the hash of both."""
    header = {"format": _FORMAT, **card}
    header |= {_DIGEST: _digest(header, tensors)}
    # One key: safetensors writes several in any order.
    return save(dict(tensors), {_HEADER_KEY: json.dumps(header, sort_keys=True)})


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over header and weights of a model file."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(segmenter: Segmenter, discriminator: Discriminator) -> None:
    """Refuse weights that are no longer finite numbers.

    Raises
    ------
    DivergedError
        If one is not finite; the message names the first.
    """
    for name, value in _tensors(segmenter, discriminator):
        if not torch.isfinite(value).all():
            raise DivergedError(
                f"training diverged: {name} is not finite any more; try a lower learning_rate, or bf16 = false"
            )


def _tensors(segmenter: Segmenter, discriminator: Discriminator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights and buffers under their names in the file."""
    for prefix, module in (("segmenter", segmenter), ("discriminator", discriminator)):
        for name, value in module.state_dict().items():
            yield f"{prefix}.{name}", value


def _half(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu()
    half = value.to(torch.float16)
    return (half if torch.isfinite(half).all() else value).contiguous()


def load_model(
    path: Path | None = None, *, device: torch.device | None = None, bf16: bool | None = None
) -> LoadedModel:
    """Load a model file; nothing in it is ever executed.

    Parameters
    ----------
    path
        The file; None for the model inside the package.
    device
        None: the first GPU, else the CPU.
    bf16
        Whether to predict in bfloat16; None: where the device has it in hardware.

    Raises
    ------
    ModelError
        If the file is missing, damaged (by the hash in its header), or not one of cohortseg's.
    """
    path = Path(path or default_model_path())
    card, tensors, sha256 = _read(path)
    device = device or find_device()
    reuse_memory()
    limit_threads()
    with torch.device("meta"):  # without memory: the header may ask for any size
        segmenter, discriminator = Segmenter(card.model), Discriminator(card.model.discriminator_channels)
    needed = {name: tuple(value.shape) for name, value in _tensors(segmenter, discriminator)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if misfits := [name for name in sorted({*needed, *found}) if needed.get(name) != found.get(name)]:
        name = misfits[0]
        raise ModelError(
            f"{path}: its weights do not fit the settings in its header, such as {name}, "
            f"{found.get(name, 'none')} in place of {needed.get(name, 'none')}"
        )
    for prefix, module in (("segmenter", segmenter), ("discriminator", discriminator)):
        module.to_empty(device="cpu").load_state_dict(
            {name: tensors[f"{prefix}.{name}"].float() for name in module.state_dict()}
        )
        if not all(torch.isfinite(value).all() for value in module.state_dict().values()):
            raise ModelError(f"{path}: the {prefix}'s weights are not all finite numbers")
        module.eval().requires_grad_(requires_grad=False)
        fold_batch_norms(module)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(
        segmenter=segmenter,
        discriminator=discriminator,
        card=card,
        sha256=sha256,
        device=device,
        bf16=has_fast_bf16(device) if bf16 is None else bf16,
    )


def _read(path: Path) -> tuple[ModelCard, dict[str, torch.Tensor], str]:
    """Return card and weights of a model file, and the SHA-256 of the bytes read, as the file may change meanwhile."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; train one with 'cohortseg train', or leave --model out")
    try:
        content = path.read_bytes()
        tensors = load(content)
        end = 8 + int.from_bytes(content[:8], "little")
        header = parse_json((parse_json(content[8:end]).get("__metadata__") or {}).get(_HEADER_KEY, "null"))
    except (OSError, LookupError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT or not {_DIGEST, *_HASHES} <= header.keys():
        raise ModelError(
            f"{path}: not a model file of this version of cohortseg (its header lacks format {_FORMAT} or what belongs "
            "to it); train it again, or use the version that wrote it"
        )
    if header.pop(_DIGEST) != _digest(header, tensors):
        raise ModelError(f"{path}: damaged: it does not hold what was written (by its SHA-256); get or train it again")
    del header["format"]
    try:
        header["model"] = config_from_mapping(ModelConfig, header["model"])
        header["canonical"] = config_from_mapping(CanonicalConfig, header["canonical"])
        _check_types(header)
        header |= {name: tuple(header[name]) for name in _HASHES}
        return ModelCard(**header), tensors, hashlib.sha256(content).hexdigest()
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path}: the header does not describe a model: {error}") from error


def _check_types(header: Mapping[str, Any]) -> None:
    """Refuse header values of a wrong type: the rest of the program relies on these types."""
    kinds = {"name": str, "recipe": dict, "licence": str, "versions": dict} | dict.fromkeys(_HASHES, list)
    wrong = [name for name, kind in kinds.items() if not isinstance(header.get(name, kind()), kind)]
    wrong += [name for name in _HASHES if not all(isinstance(item, str) for item in header[name])]
    if not wrong:
        offsets = header["recipe"].get("class_offsets", [0.0] * NUM_CLASSES)
        wrong = [] if len(offsets) == NUM_CLASSES and all(map(math.isfinite, offsets)) else ["class_offsets"]
        wrong += [name for name in _NUMBERS if not math.isfinite(header["recipe"].get(name, 0.0))]
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: of a wrong type")

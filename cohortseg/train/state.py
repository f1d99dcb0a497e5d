"""The state of a training run between two iterations, and its checkpoint."""

import copy
import io
import pickle
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cohortseg.config import TrainConfig, config_from_mapping
from cohortseg.errors import ConfigError, ModelError
from cohortseg.hashes import file_sha256
from cohortseg.models.device import reuse_memory
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.efficientnet import EfficientNetLite0Encoder
from cohortseg.models.resnet import ResNetEncoder
from cohortseg.models.resnet_weights import PUBLISHED, find_imagenet
from cohortseg.models.segmenter import Segmenter, build_encoder
from cohortseg.store.files import store_errors

SUPERVISED: Final = 1
ADVERSARIAL: Final = 2

_FILE = "state.pt"
_LACK_OF_MEMORY: Final = "allocate memory"
"""In the text of what PyTorch raises then, a RuntimeError."""
FREE_TO_CHANGE: Final = frozenset(
    {
        "checkpoint_every",
        "bf16",
        "batch_labeled",
        "batch_pseudo",
        "batch_unlabeled",
        "imagenet_file",
        "predict_size",
        "class_offsets",
    }
)
"""Settings that may differ on resume, as they do not change what is being minimised: with other numbers of workers the
batches of each are others (in the same proportion to each other, see `check_resumable`)."""


@dataclass(kw_only=True)
class TrainState:
    """Networks, optimisers, averaged weights, and where in the schedule the run is."""

    config: TrainConfig
    segmenter: Segmenter
    discriminator: Discriminator
    segmenter_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """Exponential moving average of the segmenter; None if not asked for."""
    iteration: int = 0
    """Iterations done."""
    phase_start: int = 0
    """Iteration at which phase 2 began; 0 while phase 1 lasts."""
    phase: int = SUPERVISED
    finished: bool = False
    """Whether a run of phase 1 alone has ended, perhaps before its last iteration since it is saturated."""
    smoothed_loss: float | None = None
    """Smoothed loss of the saturation detector; its best value so far, and that iteration, follow."""
    best_loss: float | None = None
    best_iteration: int = 0
    loss_sum: float = 0.0
    """Sum over the iterations that the detector has not looked at yet."""

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole run, as far as known now."""
        if self.phase == ADVERSARIAL:  # phase 1 may have ended early
            return self.phase_start + self.config.adversarial_iterations
        return self.config.planned_iterations

    def final_segmenter(self) -> Segmenter:
        """Return a copy of the segmenter that becomes the model: averaged if asked for, with the class offsets."""
        module = copy.deepcopy(self.segmenter if self.averaged is None else self.averaged.module)
        if not isinstance(module, Segmenter):
            raise TypeError(f"expected a Segmenter, got {type(module)}")
        bias = module.head.get_parameter("bias")
        bias.data += torch.tensor(self.config.class_offsets, device=bias.device)
        return module


def build_state(config: TrainConfig, device: torch.device, *, imagenet: bool = True) -> TrainState:
    """Return the state before the first iteration; the same seed gives the same weights on every worker.

    Parameters
    ----------
    config
        The settings.
    device
        Where the networks are to be.
    imagenet
        Whether ImageNet weights are loaded if the settings ask for them; a checkpoint loaded afterwards replaces them.

    Raises
    ------
    ModelError
        If the ImageNet weights cannot be obtained.
    """
    reuse_memory()
    torch.manual_seed(config.seed)
    segmenter = Segmenter(config.model)
    if imagenet:
        _load_imagenet(segmenter.encoder, config)
    discriminator = Discriminator(config.model.discriminator_channels)
    for module in (segmenter, discriminator):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = None
    if config.ema_decay > 0:
        averaged = AveragedModel(segmenter, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        averaged.eval()
    return TrainState(
        config=config,
        segmenter=segmenter,
        discriminator=discriminator,
        segmenter_optimizer=_segmenter_optimizer(config, segmenter),
        discriminator_optimizer=torch.optim.Adam(
            discriminator.parameters(), lr=config.discriminator_learning_rate, fused=True
        ),
        averaged=averaged,
    )


def check_imagenet(config: TrainConfig) -> None:
    """Check, before any other work, that the ImageNet weights can be obtained, and fetch them if need be.

    Raises
    ------
    ModelError
        If they cannot; the message says where they should be.
    """
    _load_imagenet(build_encoder(config.model), config)


def imagenet_sha256(config: TrainConfig) -> str | None:
    """Return the SHA-256 of the ImageNet weights; None if none are used, or the encoder accepts one file only.

    Raises
    ------
    ModelError
        If they cannot be obtained.
    """
    if not config.model.imagenet or config.model.encoder not in PUBLISHED:
        return None
    return file_sha256(find_imagenet(config.model.encoder, _own_imagenet(config)))


def _load_imagenet(encoder: EfficientNetLite0Encoder | ResNetEncoder, config: TrainConfig) -> None:
    if config.model.imagenet:
        encoder.load_imagenet(_own_imagenet(config))


def _own_imagenet(config: TrainConfig) -> Path | None:
    """Return the user's own weights file, if any."""
    return Path(config.imagenet_file) if config.imagenet_file else None


def _segmenter_optimizer(config: TrainConfig, segmenter: Segmenter) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            segmenter.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        segmenter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


_MODULES: Final = ("segmenter", "discriminator", "segmenter_optimizer", "discriminator_optimizer", "averaged")
_NUMBERS: Final = (
    *("iteration", "phase_start", "phase", "finished"),
    *("smoothed_loss", "best_loss", "best_iteration", "loss_sum"),
)


def save_state(state: TrainState, folder: Path) -> None:
    """Write the whole state into a folder; order and augmentation need none, as they follow from seed and iteration."""
    document: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    for name in _MODULES:
        module = getattr(state, name)
        document[name] = None if module is None else module.state_dict()
    document["config"] = asdict(state.config)
    folder.mkdir(parents=True, exist_ok=True)
    with store_errors(folder / _FILE, "cannot be written"), (folder / _FILE).open("wb") as file:
        try:
            torch.save(document, file)
        except RuntimeError as error:  # torch's own, of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextmanager
def undone(state: TrainState) -> Iterator[None]:
    """Undo what the block does to networks, optimisers and PyTorch's random state."""
    modules = [module for name in _MODULES if (module := getattr(state, name)) is not None]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    with torch.random.fork_rng(devices=[]):  # no layer draws on a GPU
        yield
    for module, saved in zip(modules, before, strict=True):
        module.load_state_dict(saved)
    for optimizer in (state.segmenter_optimizer, state.discriminator_optimizer):
        optimizer.zero_grad(set_to_none=True)


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint's file, a zip archive, can be loaded and matches its own checksums.

    Raises
    ------
    StoreError
        If storage does not let it be read, which says nothing of the checkpoint.
    MemoryError
        If there is too little memory to load it, which says nothing either.
    """
    path = folder / _FILE
    with store_errors(path, "cannot be read"):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if file.testzip() is not None:
                return False
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if _LACK_OF_MEMORY in str(error):
            raise MemoryError(f"{path}: memory ran out") from error
        return False
    return True


def load_state(state: TrainState, folder: Path) -> None:
    """Fill a freshly built state from a checkpoint; nothing in the file is executed.

    Raises
    ------
    StoreError
        If storage does not let the checkpoint be read.
    ModelError
        If it is no checkpoint of such networks.
    ConfigError
        If it was made with other settings.
    """
    device = next(state.segmenter.parameters()).device
    try:
        with store_errors(folder, "cannot be read"):
            document = torch.load(folder / _FILE, map_location=device, weights_only=True)
        check_same_settings(document["config"], state.config)
        for name in _NUMBERS:
            setattr(state, name, document[name])
        for name in _MODULES:
            module = getattr(state, name)
            if module is not None:
                module.load_state_dict(document[name])
    except (EOFError, pickle.UnpicklingError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder}: not a readable checkpoint ({error}): start again in a new folder") from error


def check_same_settings(
    saved: dict[str, Any], config: TrainConfig, *, free_to_change: Collection[str] = FREE_TO_CHANGE
) -> None:
    """Refuse settings that differ from the saved ones, except those free to change.

    Raises
    ------
    ConfigError
        If any differ; the message names each, with both values.
    """
    before, now = asdict(config_from_mapping(TrainConfig, saved)), asdict(config)
    differing = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in now.items()
        if name not in free_to_change and before[name] != value
    ]
    if differing:
        raise ConfigError(f"cannot resume with other settings: {'; '.join(differing)}; use a new run folder")

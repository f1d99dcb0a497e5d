"""Settings of every command, with their ranges; the only place where defaults are defined."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, get_args, get_type_hints

from cohortseg.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Engine = Literal["auto", "local", "ray"]
Preset = Literal["paper", "cpu", "labels", "student"]
"""Named recipes: the keys of `PRESETS`."""
ImageOrientation = Literal["upright", "transposed", "quarter-turned"]
"""Orientation of a user's own 8-bit images; DICOM states its own."""
ExportFormat = Literal["dicom-seg", "nifti", "png"]
EncoderName = Literal["resnet18", "resnet34", "resnet50", "efficientnet-lite0"]
T = TypeVar("T", bound="DataclassInstance")


NORM_GROUPS: Final = 8
"""Number of groups in the networks' group normalisation."""
_SIZES: Final = "a multiple of 32 in 64..2048"
_MOST: Final = 10**8
"""Upper bound of numbers of iterations and slices; anything larger is taken for a typing error."""
_SEEDS: Final = 2**43
"""Upper bound of a run's seed: the seed of each iteration, computed from it, must fit into 64 bits."""
_NOT_NEGATIVE: Final = ("momentum", "weight_decay", "commitment")
"""Settings of training that, like the weights of losses, must be finite and not negative."""


def _is_size(pixels: int) -> bool:
    return 64 <= pixels <= 2048 and pixels % 32 == 0


def _check(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class CanonicalConfig:
    """The canonical slice: the form of every network input, in training and in inference."""

    size: int = 256
    """Height and width, pixels; a multiple of 32."""
    window_hu: tuple[float, float] = (-1350.0, 150.0)
    """HU that are mapped to 0 and 1."""
    margin: float = 0.05
    """Border around the lungs, as a fraction of their height and width."""
    min_box: float = 0.6
    """Smallest crop of a slice, as a fraction of the whole series' crop, so that apices are not enlarged too much."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(_is_size(self.size), f"size must be {_SIZES}", self.size)
        in_order = all(map(math.isfinite, self.window_hu)) and self.window_hu[0] < self.window_hu[1]
        _check(in_order, "window_hu must be (low, high) with low < high", self.window_hu)
        _check(0 <= self.margin <= 0.5, "margin must be in [0, 0.5]", self.margin)
        _check(0 < self.min_box <= 1, "min_box must be in (0, 1]", self.min_box)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks; docs/method.md gives the reasons for choices that the paper leaves open."""

    encoder: EncoderName = "resnet18"
    """Encoder of the segmentation backbone."""
    imagenet: bool = False
    """Start the encoder from ImageNet weights, with its batch normalisation frozen."""
    encoder_width: int = 64
    """Channels of a ResNet's first stage, doubled by each of the three others. Narrower is faster, for quick trials and
    small machines; ImageNet weights are for 64."""
    decoder_channels: tuple[int, int, int, int] = (128, 96, 64, 32)
    """Channels of the decoder at strides 16, 8, 4 and 2."""
    vq_branch: bool = True
    """Whether the VQ-VAE branch exists (VVM in the paper's table 2)."""
    codebook_size: int = 256
    """Number of codes in the codebook, which both levels share."""
    code_dim: int = 64
    """Length of a code."""
    discriminator_channels: int = 32
    """Channels of the discriminator's first layer; the number doubles twice in later layers."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(len(self.decoder_channels) == 4, "decoder_channels must be four numbers", self.decoder_channels)
        encoders = get_args(EncoderName)
        _check(self.encoder in encoders, f"encoder must be one of {', '.join(encoders)}", self.encoder)
        _check(
            self.imagenet or self.encoder != "efficientnet-lite0",
            "efficientnet-lite0 has batch normalisation that does not learn, so it needs imagenet = true",
            self.imagenet,
        )
        _check(
            self.encoder_width == 64 or not self.imagenet,
            "encoder_width must be 64 where imagenet = true: there are no ImageNet weights of other widths",
            self.encoder_width,
        )
        _check(
            NORM_GROUPS <= self.encoder_width <= 4096 and self.encoder_width % NORM_GROUPS == 0,
            f"encoder_width must be a multiple of {NORM_GROUPS} (group normalisation) up to 4096",
            self.encoder_width,
        )
        for name, widths in (
            ("decoder_channels", self.decoder_channels),
            ("code_dim", (self.code_dim,)),
            ("discriminator_channels", (self.discriminator_channels,)),
        ):
            _check(
                all(1 <= width <= 4096 and (width < NORM_GROUPS or width % NORM_GROUPS == 0) for width in widths),
                f"{name} must be below {NORM_GROUPS}, or a multiple of it (group normalisation) up to 4096",
                getattr(self, name),
            )
        _check(2 <= self.codebook_size <= 2**16, "codebook_size must be in 2..65536", self.codebook_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Two-phase training; the defaults are the paper's settings (docs/method.md)."""

    canonical: CanonicalConfig = field(default_factory=CanonicalConfig)
    """The network input."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The networks."""
    imagenet_file: str = ""
    """File with ImageNet weights; empty: those of the package (efficientnet-lite0) or of pytorch.org (resnets)."""
    preset: Preset = "paper"
    """Name of the recipe that these settings started from; kept in the model card."""
    supervised_iterations: int = 1000
    """Largest number of iterations of phase 1 (images with labels only, of readers or teachers)."""
    adversarial_iterations: int = 1000
    """Number of iterations of phase 2 (semi-supervised adversarial)."""
    warmup_iterations: int = 200
    """Iterations at the start of phase 2 in which the discriminator learns and pseudo labels do not count yet."""
    saturation_patience: int = 0
    """End phase 1 early if the smoothed loss has not fallen by 1 % for this many iterations; 0: never."""
    batch_labeled: int = 4
    """Labelled images per iteration on each worker."""
    batch_pseudo: int = 0
    """Unlabelled images an iteration on each worker, in both phases, that are learned from like labelled ones, with the
    labels that teachers give them (``--teacher``); 0: none."""
    batch_unlabeled: int = 4
    """Unlabelled images per iteration on each worker."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the segmentation network."""
    learning_rate: float = 0.01
    """Initial learning rate of the segmentation network; it decays to zero over both phases with the power 0.9."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of the segmentation network."""
    discriminator_learning_rate: float = 1e-4
    """Learning rate of Adam for the discriminator."""
    proportion_weight: float = 0.5
    """Weight of the proportion loss: lambda of equation (11)."""
    adversarial_weight: float = 0.01
    """Weight of L_adv, equation (12)."""
    semi_weight: float = 0.1
    """Weight of L_semi, equation (13)."""
    vq_weight: float = 1.0
    """Weight of the VQ-VAE loss, equation (2); the paper gives none."""
    dice_weight: float = 0.0
    """Weight of an additional soft Dice loss; 0 as in the paper."""
    opacity_dice_weight: float = 0.0
    """Weight of an additional soft Dice loss of both lesion classes as one; 0 as in the paper."""
    commitment: float = 0.25
    """Weight of the commitment loss: beta of equation (2)."""
    confidence_threshold: float = 0.2
    """Confidence above which a pixel is trusted: T of equation (13), in the paper's range [0.1, 0.3]."""
    semi_supervised: bool = True
    """Whether phase 2 runs (SSA in the paper's table 2)."""
    truth_confidence: float = 0.8
    """tau: the discriminator sees truth as the prediction itself, raised to at least tau for the right class, so that
    sharpness does not give it away; 1: plain one-hot."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which becomes the model; 0: use the last weights."""
    predict_size: int = 0
    """Height and width of the finished model's input; 0: as in training. Slices finer than in training can be segmented
    better (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"; docs/crossval.md)."""
    class_offsets: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Offsets added to the finished model's logits of background, GGO and consolidation: Dice is best if a lesion
    wins even below an even chance."""
    augment: bool = True
    """Augment slices by random mirroring, affine maps, warps, intensity changes and noise."""
    painted_foci: float = 0.0
    """Fraction of slices with labels, of readers or teachers, that get solid foci painted into the lungs, as
    consolidation; 0 as in the paper."""
    bf16: bool | None = None
    """Use bfloat16 autocast; none: where the device supports it in hardware."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    checkpoint_every: int = 100
    """Number of iterations between checkpoints."""

    def resolved(self) -> Self:
        """Return the settings with an absolute path, since workers have other working folders."""
        return replace(self, imagenet_file=str(Path(self.imagenet_file).resolve())) if self.imagenet_file else self

    @property
    def planned_iterations(self) -> int:
        """Number of iterations of both phases if phase 1 does not end early."""
        return self.supervised_iterations + (self.adversarial_iterations if self.semi_supervised else 0)

    @property
    def uses_unlabeled(self) -> bool:
        """Whether unlabelled slices contribute in phase 2, through a weighted loss or the VQ-VAE branch."""
        weights = (self.adversarial_weight, self.semi_weight, self.proportion_weight)
        return self.semi_supervised and (any(weights) or self.model.vq_branch)

    @property
    def needs_unlabeled(self) -> bool:
        """Whether unlabelled slices take part: in phase 2, or with the labels of teachers."""
        return self.uses_unlabeled or self.batch_pseudo > 0

    @property
    def unlabeled_a_step(self) -> int:
        """Number of unlabelled images per iteration of phase 2 on each worker."""
        return self.batch_unlabeled if self.uses_unlabeled else 0

    def __post_init__(self) -> None:
        """Check ranges; nested settings may come as mappings (from JSON or TOML)."""
        if isinstance(self.canonical, Mapping):
            object.__setattr__(self, "canonical", config_from_mapping(CanonicalConfig, self.canonical))
        if isinstance(self.model, Mapping):
            object.__setattr__(self, "model", config_from_mapping(ModelConfig, self.model))
        _check(
            self.predict_size == 0 or _is_size(self.predict_size),
            f"predict_size must be 0, or {_SIZES}",
            self.predict_size,
        )
        _check(
            self.predict_size == 0 or self.predict_size >= self.canonical.size,
            f"predict_size must not be below the size trained at ({self.canonical.size}); 0: the same",
            self.predict_size,
        )
        _check(
            len(self.class_offsets) == 3 and all(map(math.isfinite, self.class_offsets)),
            "class_offsets must be three finite numbers",
            self.class_offsets,
        )
        for name in ("supervised_iterations", "batch_labeled", "batch_unlabeled", "checkpoint_every"):
            _check(1 <= getattr(self, name) <= _MOST, f"{name} must be in 1..{_MOST}", getattr(self, name))
        for name in ("adversarial_iterations", "warmup_iterations", "saturation_patience", "batch_pseudo"):
            _check(0 <= getattr(self, name) <= _MOST, f"{name} must be in 0..{_MOST}", getattr(self, name))
        _check(
            self.adversarial_iterations >= 1 or not self.semi_supervised,
            "adversarial_iterations must be at least 1 with semi_supervised = true",
            self.adversarial_iterations,
        )
        _check(
            self.warmup_iterations < self.adversarial_iterations or not self.semi_supervised,
            f"warmup_iterations must be below adversarial_iterations ({self.adversarial_iterations}), or pseudo labels "
            "never count",
            self.warmup_iterations,
        )
        _check(0 <= self.seed < _SEEDS, f"seed must be in 0..{_SEEDS - 1}", self.seed)
        for name in (*_NOT_NEGATIVE, *(item.name for item in fields(self) if item.name.endswith("_weight"))):
            value = getattr(self, name)
            _check(0 <= value < math.inf, f"{name} must be a finite number, not negative", value)
        _check(self.momentum < 1, "momentum must be below 1", self.momentum)
        _check(self.optimizer in ("sgd", "adamw"), "optimizer must be sgd or adamw", self.optimizer)
        for name in ("learning_rate", "discriminator_learning_rate"):
            _check(0 < getattr(self, name) < math.inf, f"{name} must be positive and finite", getattr(self, name))
        _check(0 <= self.confidence_threshold < 1, "confidence_threshold must be in [0, 1)", self.confidence_threshold)
        _check(0.5 < self.truth_confidence <= 1, "truth_confidence must be in (0.5, 1]", self.truth_confidence)
        _check(0 <= self.painted_foci <= 1, "painted_foci must be in [0, 1]", self.painted_foci)
        _check(
            self.painted_foci == 0 or self.augment,
            "painted_foci must be 0 without augment",
            self.painted_foci,
        )
        _check(
            self.painted_foci == 0 or self.canonical.window_hu == CanonicalConfig.window_hu,
            "painted_foci must be 0 with another window_hu: foci are painted in intensities of the default one",
            self.painted_foci,
        )
        _check(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)", self.ema_decay)
        _check(
            not self.imagenet_file or self.model.imagenet,
            "imagenet_file needs imagenet = true in the table [model]",
            self.imagenet_file,
        )


_CPU: Final[dict[str, Any]] = {
    "canonical": CanonicalConfig(size=192),
    "predict_size": 224,
    "model": ModelConfig(encoder="efficientnet-lite0", imagenet=True, decoder_channels=(96, 64, 48, 16)),
    "supervised_iterations": 1000,
    "adversarial_iterations": 200,
    "warmup_iterations": 40,
    "batch_labeled": 8,
    "batch_unlabeled": 8,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "dice_weight": 1.0,
    "opacity_dice_weight": 0.5,
    "ema_decay": 0.99,
    "class_offsets": (0.0, 0.8, 1.2),
}
_LABELS: Final[dict[str, Any]] = _CPU | {
    "model": replace(_CPU["model"], vq_branch=False),
    "supervised_iterations": 600,
    "painted_foci": 0.35,
    "proportion_weight": 0.0,
    "adversarial_weight": 0.0,
    "semi_weight": 0.0,
}
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "paper": {},
    "cpu": _CPU,
    # Labels alone, with a discriminator trained beside the segmenter: the teachers of the packaged model.
    "labels": _LABELS,
    # The recipe of the packaged model: labels of readers and, for the unlabelled slices, of teachers.
    "student": _LABELS
    | {
        "supervised_iterations": 1000,
        "batch_labeled": 4,
        "batch_pseudo": 4,
        "class_offsets": (0.0, 0.8, 1.6),
    },
}
"""Named recipes: the defaults that each changes."""


RESAMPLE: Final = "resample"
UNTILT: Final = "untilt"
REPAIRS: Final = (RESAMPLE, UNTILT)
_PREFERRED: Final = (
    "stack",
    "chest",
    "plain",
    "field",
    "coverage",
    "inspiration",
    "original",
    "thin",
    "soft",
    "slices",
)
PREFERENCES: Final = (*_PREFERRED, "lung")


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """The choice of the series of a cohort that are segmented."""

    select: tuple[str, ...] = ("preferred",)
    """Rules that must all hold: preferred (one series per study), all, or COLUMN OPERATOR VALUE (docs/selection.md)."""
    prefer: tuple[str, ...] = _PREFERRED
    """Criteria for choosing among several usable series of a study; the first on which they differ decides."""
    repair: tuple[str, ...] = ()
    """Repairs made instead of skipping a series: resample (uneven spacing, short gaps), untilt (gantry tilt)."""

    def __post_init__(self) -> None:
        """Check names."""
        for name, valid in (("prefer", PREFERENCES), ("repair", REPAIRS)):
            unknown = [item for item in getattr(self, name) if item not in valid]
            _check(not unknown, f"{name} must be of {', '.join(valid)}", ", ".join(map(str, unknown)))


@dataclass(frozen=True, kw_only=True)
class InferConfig(ScanConfig):
    """Segmentation of a cohort."""

    engine: Engine = "auto"
    """Where series are segmented: local (this process), ray (Ray Data actors) or auto (whichever suits the cohort's
    size; Ray also if two or more workers, or a cluster, are given)."""
    workers: int | None = None
    """Number of Ray actors, each with its own model and core; none: one per core, at most four per GPU."""
    batch_size: int | None = None
    """Slices per forward pass; none: 4 on a CPU, where more take memory and gain nothing, 16 on a GPU."""
    flips: bool = True
    """Average the probabilities over the slice and its mirror image."""
    resume: bool = True
    """Keep the series that an earlier run into the same output folder has finished."""
    retry_failed: bool = False
    """Redo series that failed in an earlier run, for example because a decoder or memory was missing."""
    max_attempts: int = 3
    """Give up a series after it has ended its worker process this many times in one run."""
    overlays: bool = True
    """Write one overlay picture per series; pictures of earlier runs stay. Turning this on later segments again."""
    auto_ray_series: int = 64
    """With engine auto, use Ray if at least this many series are still to do and more than one worker can run."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        _check(self.engine in ("auto", "local", "ray"), "engine must be auto, local or ray", self.engine)
        _check(self.workers is None or self.workers >= 1, "workers must be at least 1", self.workers)
        _check(self.batch_size is None or self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        _check(self.max_attempts >= 1, "max_attempts must be at least 1", self.max_attempts)
        _check(self.auto_ray_series >= 1, "auto_ray_series must be at least 1", self.auto_ray_series)


EXECUTION_SETTINGS: Final = frozenset(
    {"engine", "workers", "batch_size", "resume", "retry_failed", "max_attempts", "auto_ray_series", "overlays"}
)
"""Settings of `InferConfig` that say how series are processed and do not change masks or numbers."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The synthetic cohort."""

    patients: int = 3
    """Number of patients; every third is free of lesions."""
    timepoints: int = 3
    """Number of study dates per patient; the first patient has one fewer (but at least one)."""
    slices: int = 10
    """Slices per series, spread over the height of the lungs."""
    size: int = 256
    """Number of rows and of columns."""
    seed: int = 0
    """Seed; the same seed and versions give the same bytes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(1 <= self.patients <= 10_000, "patients must be in 1..10000", self.patients)
        _check(1 <= self.timepoints <= 50, "timepoints must be in 1..50", self.timepoints)
        _check(1 <= self.slices <= 1000, "slices must be in 1..1000", self.slices)
        _check(64 <= self.size <= 1024, "size must be in 64..1024", self.size)
        _check(0 <= self.seed < 2**63, "seed must be in 0..2**63 - 1", self.seed)


def config_from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return a settings object from plain values; unknown names are refused.

    Raises
    ------
    ConfigError
        If a name is unknown (the message lists the valid ones), or a value is of another type or out of range.
    """
    valid = {item.name for item in fields(cls)}
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - valid)
    if unknown:
        raise ConfigError(f"unknown setting(s) {', '.join(unknown)}; valid are {', '.join(sorted(valid - {'preset'}))}")
    return cls(**{name: _typed(name, hints[name], value) for name, value in values.items()})


def _typed(name: str, hint: Any, value: Any) -> Any:
    """Return a setting's value, checked against its type; nested settings check their own."""
    if is_dataclass(hint) and (isinstance(value, Mapping) or is_dataclass(value)):
        return value
    if hint == tuple[str, ...] and isinstance(value, str):
        return (value,)
    from pydantic import TypeAdapter, ValidationError  # here, so that --help does not wait .1 s

    try:
        return TypeAdapter(hint).validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{name}: {error.errors()[0]['msg']}, got {value!r}") from error


def resolve_config(cls: type[T], path: Path | None, overrides: Mapping[str, Any], base: T | None = None) -> T:
    """Return the settings of one command: the base, changed by the TOML file, then by the overrides.

    Parameters
    ----------
    cls
        The settings class.
    path
        A TOML file whose keys are field names; None for no file.
    overrides
        Values from the command line; None means "not given".
    base
        Settings that the file and the overrides change; None: the defaults.

    Raises
    ------
    ConfigError
        If the file cannot be read or a setting is unknown or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # skips the byte order mark of Windows
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not a readable TOML file: {error}") from error
        if "preset" in values and hasattr(cls, "preset"):  # a name for the other settings, not one of them
            raise ConfigError(f"{path}: preset is no setting of a file; give it as --preset {values['preset']}")
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {} if base is None else asdict(base)
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping):
            values[name] = {**known[name], **value}
    try:
        return config_from_mapping(cls, {**known, **values})
    except ConfigError as error:
        if path is None:
            raise
        raise ConfigError(f"{path}, or an option: {error}") from error


def preset_config(name: Preset) -> TrainConfig:
    """Return the training settings of a named recipe.

    Raises
    ------
    ConfigError
        If there is no such recipe.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return replace(TrainConfig(), preset=name, **PRESETS[name])

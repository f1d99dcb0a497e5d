"""Torchvision's published ImageNet weights of the ResNets: found, fetched, checked, and renamed to ours."""

import pickle
import re
from pathlib import Path
from typing import Final

import torch

from cohortseg.errors import ModelError
from cohortseg.hashes import file_sha256

PUBLISHED: Final = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
"""Files of torchvision's ``IMAGENET1K_V1`` weights; each name holds the first 8 hex digits of the file's SHA-256."""

_URL: Final = "https://download.pytorch.org/models/"
_HASH: Final = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_SHORTCUT: Final = {"downsample.0": "shortcut.0", "downsample.1": "shortcut.1"}
_BASIC: Final = _SHORTCUT | {"conv1": "body.0.0", "bn1": "body.0.1", "conv2": "body.1", "bn2": "body.2"}
_BOTTLENECK: Final = _SHORTCUT | {
    "conv1": "body.0.0",
    "bn1": "body.0.1",
    "conv2": "body.1.0",
    "bn2": "body.1.1",
    "conv3": "body.2",
    "bn3": "body.3",
}
"""Torchvision's names of the parts of a block, and ours."""


def find_imagenet(encoder: str, path: Path | None = None) -> Path:
    """Return the file of a ResNet's ImageNet weights, fetched if need be, after checking its hash.

    Parameters
    ----------
    encoder
        ``resnet18``, ``resnet34`` or ``resnet50``.
    path
        A user's file in torchvision's layout, named like theirs after its SHA-256; None: torchvision's, from
        torch's own cache (``$TORCH_HOME/hub/checkpoints``, where torchvision puts it too), else from pytorch.org.

    Raises
    ------
    ModelError
        If there is no such file and none can be fetched, or it is not what its name says.
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[encoder]
        if not path.is_file():
            _fetch(_URL + path.name, path)
    named = _HASH.search(path.name)
    if named is None:
        raise ModelError(
            f"{path}: a weights file must end in the first 8 hex digits of its SHA-256, as in {PUBLISHED[encoder]}"
        )
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    if not digest.startswith(named[1]):
        raise ModelError(
            f"{path}: damaged or not what its name says (SHA-256 {digest[:8]}...); remove it and run again"
        )
    return path


def read_resnet(path: Path) -> dict[str, torch.Tensor]:
    """Return torchvision's weights under the names of `ResNetEncoder`, without the classifier; nothing is executed.

    Raises
    ------
    ModelError
        If the file does not hold the weights of a ResNet.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        parts = _BOTTLENECK if "layer1.0.conv3.weight" in weights else _BASIC
        return {_own_name(name, parts): value for name, value in weights.items() if not name.startswith("fc.")}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: not a readable weights file: {error}") from error
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not the weights of a ResNet as torchvision lays them out: {error}") from error


def _own_name(name: str, parts: dict[str, str]) -> str:
    """Return our name of a tensor: ``layer2.0.conv1.weight`` is ``stages.1.0.body.0.0.weight``."""
    if not name.startswith("layer"):
        part, kept = name.split(".")
        return f"stem.{('conv1', 'bn1').index(part)}.{kept}"
    layer, block, rest = name.split(".", 2)
    part, kept = rest.rsplit(".", 1)
    return f"stages.{int(layer.removeprefix('layer')) - 1}.{block}.{parts[part]}.{kept}"


def _fetch(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise ModelError(
            f"{url} cannot be fetched: {error}; without a network, fetch it elsewhere and put it at {path}, or name it "
            "as imagenet_file in the --config file; or set imagenet = false under [model]"
        ) from error

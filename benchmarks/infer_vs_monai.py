"""Compare `infer` with a straightforward MONAI script for the same job at MONAI's defaults, in one run.

    pip install monai nibabel itk
    python benchmarks/infer_vs_monai.py COHORT          # e.g. the dicom folder of `cohortseg sample --slices 60`

The script uses LoadImage (one folder of DICOM per series), a lung window, resizing to the network's input slice by
slice, float32, one slice per forward pass and its mirror image too, argmax, resizing back, and SaveImage (NIfTI). It
finds no lungs and measures nothing. It runs in a process of its own, as its user would start it: with the network as it
was trained, PyTorch's default threads and glibc's default handling of memory. Start-up, imports and loading of the
model are left out of both. Each runs twice, in turn; the quicker run counts. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import safe_open

from cohortseg.config import CanonicalConfig, InferConfig, ModelConfig, config_from_mapping
from cohortseg.dicom.scan import scan_cohort
from cohortseg.models.device import find_device
from cohortseg.models.segmenter import Segmenter
from cohortseg.pipeline import infer_cohort
from cohortseg.weights import default_model_path, load_model


def trained_network() -> tuple[torch.nn.Module, CanonicalConfig]:
    """Return the packaged network as plain PyTorch code would load it, and its input."""
    with safe_open(default_model_path(), framework="pt") as file:
        header = json.loads(file.metadata()["cohortseg"])
        prefix = "segmenter."
        state = {
            name.removeprefix(prefix): file.get_tensor(name).float()
            for name in file.keys()  # noqa: SIM118 (no dict)
            if name.startswith(prefix)
        }
    network = Segmenter(config_from_mapping(ModelConfig, header["model"]))
    network.load_state_dict(state)
    return network.eval(), config_from_mapping(CanonicalConfig, header["canonical"])


@torch.inference_mode()
def monai_job(folders: Sequence[str], out: Path) -> dict[str, float]:
    """Segment series, each a folder, as one would with MONAI's transforms; return slices, seconds and threads."""
    from monai.transforms import Compose, LoadImage, Resize, SaveImage, ScaleIntensityRange

    network, canonical = trained_network()
    device = find_device()
    network.to(device)
    begin = time.perf_counter()
    low, high = canonical.window_hu
    load = Compose([LoadImage(ensure_channel_first=True), ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)])
    shrink, save = Resize((canonical.size, canonical.size)), SaveImage(out, print_log=False)
    num_slices = 0
    for folder in folders:
        image = load(folder)
        labels = torch.zeros_like(image)
        for z in range(image.shape[-1]):
            slice_ = shrink(image[..., z].as_tensor().transpose(-1, -2))[None].as_tensor().to(device)
            prob = network(slice_, reconstruct=False).logits.softmax(dim=1)
            prob += network(slice_.flip(-1), reconstruct=False).logits.softmax(dim=1).flip(-1)
            back = Resize(image.shape[2:0:-1])(prob[0].cpu())
            labels[0, ..., z] = back.argmax(dim=0).transpose(-1, -2)
        save(labels)
        num_slices += image.shape[-1]
    return {"slices": num_slices, "s": time.perf_counter() - begin, "threads": torch.get_num_threads()}


def main() -> None:
    """Time both and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--script", nargs="+", metavar=("OUT", "SERIES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.script:
        print(json.dumps(monai_job(arguments.script[1:], Path(arguments.script[0]))))
        return
    try:
        monai_version = version("monai")
    except PackageNotFoundError:
        raise SystemExit("this benchmark needs MONAI: pip install monai nibabel itk") from None
    cohort = arguments.cohort.resolve()
    series = scan_cohort(cohort).selected
    folders = [str(cohort / Path(record.files[0]).parent) for record in series]
    ours, theirs = [], []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            model = load_model()
            begin = time.perf_counter()
            config = InferConfig(engine="local")
            summary = infer_cohort(cohort, Path(name) / "out", config=config, model_path=None)
            ours.append(time.perf_counter() - begin)
            command = [sys.executable, __file__, str(cohort), "--script", str(Path(name) / "monai"), *folders]
            script = subprocess.run(command, check=True, capture_output=True, text=True)
            theirs.append(json.loads(script.stdout.splitlines()[-1]))
    if theirs[0]["slices"] != summary.burden["n_slices"].sum():
        raise SystemExit("the two did not segment the same slices")
    monai_s = min(figures["s"] for figures in theirs)
    result = {
        "slices": theirs[0]["slices"],
        "cohortseg_s": round(min(ours), 2),
        "monai_s": round(monai_s, 2),
        "ratio": round(monai_s / min(ours), 2),
        "bf16": model.bf16,
        "threads": [torch.get_num_threads(), theirs[0]["threads"]],
        "monai": monai_version,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

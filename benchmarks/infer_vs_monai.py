"""`infer` against a straightforward MONAI script that does the same job at MONAI's defaults, in one run.

    pip install monai nibabel itk
    python benchmarks/infer_vs_monai.py COHORT          # e.g. the dicom folder of `cohortseg sample --slices 60`

The script: LoadImage (a folder of DICOM a series), lung window, resized to the network's input slice by slice, float32,
one slice a forward pass, its mirror image too, argmax, resized back, SaveImage (NIfTI). It finds no lungs and measures
nothing. Both get the same network, threads and files; loading the model is left out of both. Each runs twice in turn,
the quicker counts. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cohortseg.config import InferConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.pipeline import infer_cohort
from cohortseg.weights import LoadedModel, load_model


@contextmanager
def silent(_title: str) -> Iterator[object]:
    """Show no progress."""
    yield lambda *_: None


@torch.inference_mode()
def monai_job(cohort: Path, out: Path, model: LoadedModel) -> int:
    """Segment every series as one would with MONAI's transforms; return the number of slices."""
    from monai.transforms import Compose, LoadImage, Resize, SaveImage, ScaleIntensityRange

    low, high = model.config.canonical.window_hu
    size = model.config.canonical.size
    load = Compose([LoadImage(ensure_channel_first=True), ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)])
    shrink, save = Resize((size, size)), SaveImage(out, print_log=False)
    num_slices = 0
    for record in scan_cohort(cohort).series:
        if record.decision != "selected":
            continue
        image = load(cohort / Path(record.files[0]).parent)
        labels = torch.zeros_like(image)
        for z in range(image.shape[-1]):
            slice_ = shrink(image[..., z].as_tensor().transpose(-1, -2))[None].as_tensor().to(model.device)
            prob = model.segmenter(slice_, reconstruct=False).logits.softmax(dim=1)
            prob += model.segmenter(slice_.flip(-1), reconstruct=False).logits.softmax(dim=1).flip(-1)
            back = Resize(image.shape[2:0:-1])(prob[0].cpu())
            labels[0, ..., z] = back.argmax(dim=0).transpose(-1, -2)
        save(labels)
        num_slices += image.shape[-1]
    return num_slices


def main() -> None:
    """Time both and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    cohort = parser.parse_args().cohort
    try:
        import monai
    except ImportError:
        raise SystemExit("this benchmark needs MONAI: pip install monai nibabel itk") from None
    model = load_model()
    plain = load_model(bf16=False)
    ours, theirs, slices = [], [], []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            begin = time.perf_counter()
            config = InferConfig(engine="local")
            summary = infer_cohort(cohort, Path(name) / "out", config=config, model_path=None, progress=silent)  # type: ignore[arg-type]
            ours.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            slices.append(monai_job(cohort, Path(name) / "monai", plain))
            theirs.append(time.perf_counter() - begin)
    if slices[0] != summary.burden["n_slices"].sum():
        raise SystemExit("the two did not segment the same slices")
    result = {
        "slices": slices[0],
        "cohortseg_s": round(min(ours), 2),
        "monai_s": round(min(theirs), 2),
        "ratio": round(min(theirs) / min(ours), 2),
        "bf16": model.bf16,
        "threads": torch.get_num_threads(),
        "monai": monai.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Every slice with lung as a picture: CT in a lung window, lesions and lung outline drawn over it."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from cohortseg.overlays import overlay_slice, png_bytes
from cohortseg.preprocess import orientation_from_affine
from cohortseg.store.masks import SeriesMasks
from cohortseg.volume import Volume


def slice_pictures(volume: Volume, masks: SeriesMasks) -> Iterator[tuple[int, bytes]]:
    """Yield the slices with lung, from the feet up: ``slice_index`` of the slices table, and a PNG.

    One pixel of the picture is one of the slice, set upright: anterior up, the patient's right on the left.
    """
    upright = orientation_from_affine(volume.affine).to_upright
    hu, labels, lungs = upright(volume.volume_hu), upright(masks.labels), upright(masks.lungs)
    for z in np.flatnonzero(masks.lungs.any(axis=(1, 2))):
        yield int(z), png_bytes(Image.fromarray(overlay_slice(hu[z], labels[z], lungs[z])))

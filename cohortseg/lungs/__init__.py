"""Lung masks from CT in HU that keep dense disease inside: the denominator of burden.

A plain threshold at -500 HU loses consolidated lung, which is no longer air. Here each slice goes through four steps:

1. *Aerated lung*: air inside the body, without outside air, bowel gas, trachea and main bronchi (these are followed
   from slice to slice). Lung that is gray throughout a slice is followed from aerated lung in the slices next to it.
2. *Thoracic cavity*: the inside of a closed curve found by dynamic programming in polar coordinates. The curve has rib
   just outside and none just inside, as judged over neighbouring slices too, leaves out no aerated lung, and stays near
   the convex hull of both lungs or the mirror image of the other lung. Where the air of both lungs ends far in front of
   the muscles of the back, it is expected near these.
3. *Dense lung*: soft tissue of that cavity near signs of air (dark inclusions such as air bronchograms count), unless
   it lies in a thick homogeneous core: heart, great vessels, liver, or effusion.
4. *Domes*: tissue that looks gray because the diaphragm or the heart ends within the slice is removed; the slices below
   and above tell it from a lesion. Tissue with lung on all sides, above and below too, is added, and so are the lungs'
   ends: pieces too small for step 1 that go on from lung of the next slice.

A large homogeneous region without a sign of air cannot be told from effusion by HU alone; it is left out, and flagged.
Lengths of anatomy are in mm, so that spacing does not matter; rims of a pixel or two, where air and tissue mix, are in
pixels of the working grid. A slice with no other within 20 mm gets the same mask alone as within its volume, except for
the midline (smoothed along z) and small pieces that nothing above or below supports. Of slices 2.5 mm apart or less,
only some are worked on, and the masks between them are interpolated.

Axes: Z Y X; row 0 anterior, column 0 the patient's right, z rising to the head.
"""

from cohortseg.lungs.segment import LUNG_METHOD, Lungs, segment_lungs
from cohortseg.lungs.zones import zone_thirds

__all__ = [
    "LUNG_METHOD",
    "Lungs",
    "segment_lungs",
    "zone_thirds",
]

"""Lung masks from CT in HU, made so that dense disease stays inside: the denominator of burden.

A plain threshold at -500 HU loses consolidated lung, which is no longer air. Here each slice goes four steps:

1. *Aerated lung*: air inside the body, without outside air, bowel gas, trachea and main bronchi, which are followed
   from slice to slice. Lung that is gray throughout a slice is followed from aerated lung near by.
2. *Thoracic cavity*: a closed curve around it by dynamic programming in polar coordinates. It wants rib just outside
   and none just inside, in the slices around too, leaves no aerated lung out, and keeps near the convex hull of both
   lungs and to the mirror image of the other lung; where the air of both ends far before the muscles of the back, near
   these.
3. *Dense lung*: soft tissue of that cavity near signs of air (dark inclusions such as air bronchograms count), unless
   it lies in a thick homogeneous core: heart, great vessels, liver, or effusion.
4. *Domes*: what is gray because the diaphragm, or the heart, ends within the slice is no lung; the slices below and
   above tell it from a lesion. What has lung on all sides, above and below too, is lung.

A large homogeneous region without a sign of air cannot be told from effusion by HU alone; it is left out, and flagged.
Lengths of anatomy are in mm, so that spacing does not matter; rims of a pixel or two, where air and tissue mix, are in
pixels of the working grid. A slice with none within 20 mm is segmented alike alone and within its volume, but for the
midline (smoothed along z) and for small pieces that nothing above or below supports. Of slices of 2.5 mm or less only
some are worked on, and the masks between are interpolated.

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

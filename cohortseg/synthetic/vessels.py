"""Vessel and airway trees of the lungs, and their picture in a slice of finite thickness."""

from dataclasses import dataclass

import numpy as np

from cohortseg.synthetic.fields import Floats, cover

_MURRAY = 2.45
"""A parent's radius to this power is the sum of its children's (Murray's law has 3; less keeps the tips thin)."""
_WALL_MM = 0.55


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Straight pieces of tubes."""

    start: Floats
    """(N, 3) x, y, z, mm."""
    end: Floats
    """(N, 3) x, y, z, mm."""
    radius_mm: Floats
    """(N,) mm."""


def grow_tree(
    rng: np.random.Generator, root: tuple[float, float, float], targets: Floats, tip_radius_mm: float
) -> Tree:
    """Grow a tree from a root to all targets by halving their territory again and again.

    A branch runs a part of the way to the centre of the targets it supplies, which are then split by a plane; the
    method of Tawhai et al., J Appl Physiol 2004 (97:2310), with random jitter.

    Parameters
    ----------
    rng
        Draws the jitter.
    root
        (x, y, z), mm.
    targets
        (N, 3) mm, N > 0.
    tip_radius_mm
        Radius of a branch that supplies one target; one that supplies n has n^(1/2.45) times that.
    """
    starts, ends, counts = [], [], []
    waiting = [(np.asarray(root, dtype=np.float64), targets)]
    while waiting:
        start, supplied = waiting.pop()
        center = supplied.mean(axis=0)
        reach = center - start
        length = float(np.linalg.norm(reach))
        if len(supplied) == 1:
            end = center
        else:
            end = start + reach * rng.uniform(0.36, 0.5) + rng.normal(0.0, 0.06 * length, 3)
        starts.append(start)
        ends.append(end)
        counts.append(len(supplied))
        if len(supplied) > 1:
            waiting += [(end, half) for half in _halves(rng, supplied, center, reach)]
    radii = tip_radius_mm * np.asarray(counts, dtype=np.float64) ** (1.0 / _MURRAY)
    return Tree(start=np.asarray(starts), end=np.asarray(ends), radius_mm=radii)


def _halves(rng: np.random.Generator, points: Floats, center: Floats, along: Floats) -> tuple[Floats, Floats]:
    """Split points, across the direction in which they spread most, into two sets that are never empty."""
    spread = (points - center).T @ (points - center)
    axis = np.linalg.eigh(spread)[1][:, -1]
    axis = axis * (1.0 if axis[np.argmax(np.abs(axis))] > 0 else -1.0)  # eigenvectors have no sign of their own
    order = np.argsort((points - center) @ axis + 1e-9 * (points @ along), kind="stable")
    cut = int(np.clip(round(len(points) * rng.uniform(0.35, 0.65)), 1, len(points) - 1))
    return points[order[:cut]], points[order[cut:]]


def bronchi_beside(arteries: Tree, smallest_mm: float) -> Tree:
    """Return the airways that run beside all arteries of at least the given radius, just behind them."""
    chosen = arteries.radius_mm >= smallest_mm
    radius = arteries.radius_mm[chosen]
    # All bronchi lie on one side, so that the pieces stay connected where radii change little.
    shift = np.array([0.0, 0.8, 0.6]) * (1.9 * radius + 2 * _WALL_MM)[:, None]
    return Tree(start=arteries.start[chosen] + shift, end=arteries.end[chosen] + shift, radius_mm=0.8 * radius)


def joined(*trees: Tree) -> Tree:
    """Return all pieces as one tree."""
    return Tree(
        start=np.concatenate([tree.start for tree in trees]),
        end=np.concatenate([tree.end for tree in trees]),
        radius_mm=np.concatenate([tree.radius_mm for tree in trees]),
    )


def walls_of(airways: Tree) -> Tree:
    """Return the airways with their walls."""
    return Tree(start=airways.start, end=airways.end, radius_mm=airways.radius_mm * 1.12 + _WALL_MM)


def tubes_in_slice(tree: Tree, xs: Floats, ys: Floats, z: float, thickness_mm: float) -> Floats:
    """Return the fraction of each voxel of a slice that tubes fill.

    Parameters
    ----------
    tree
        The tubes.
    xs, ys
        (X,), (Y,) centres of columns and rows, evenly spaced, mm.
    z
        Middle of the slice, mm.
    thickness_mm
        Thickness of the slice: a thin tube that lies in it fills only a part of its voxels.

    Returns
    -------
    (Y, X) float64, 0 to 1
    """
    filled = np.zeros((len(ys), len(xs)))
    low, high = z - thickness_mm / 2, z + thickness_mm / 2
    bottom = np.minimum(tree.start[:, 2], tree.end[:, 2]) - 0.7 * tree.radius_mm
    top = np.maximum(tree.start[:, 2], tree.end[:, 2]) + 0.7 * tree.radius_mm
    for index in np.flatnonzero((bottom < high) & (top > low)):
        _add_tube(filled, tree.start[index], tree.end[index], float(tree.radius_mm[index]), xs, ys, (low, high))
    return filled


def _add_tube(
    filled: Floats, start: Floats, end: Floats, radius: float, xs: Floats, ys: Floats, slab: tuple[float, float]
) -> None:
    """Add one tube, clipped to the slab between two heights, to the picture of all of them."""
    rise = end[2] - start[2]
    if abs(rise) > 1e-6:
        part = np.clip((np.asarray(slab) - start[2]) / rise, 0.0, 1.0)
        a, b = start + part.min() * (end - start), start + part.max() * (end - start)
    else:
        a, b = start, end
    pixel = float(xs[1] - xs[0])
    margin = radius + pixel
    columns = slice(*np.searchsorted(xs, (min(a[0], b[0]) - margin, max(a[0], b[0]) + margin)))
    rows = slice(*np.searchsorted(ys, (min(a[1], b[1]) - margin, max(a[1], b[1]) + margin)))
    dx, dy = xs[None, columns] - a[0], ys[rows, None] - a[1]
    ex, ey = b[0] - a[0], b[1] - a[1]
    along = np.clip((dx * ex + dy * ey) / max(ex * ex + ey * ey, 1e-9), 0.0, 1.0)
    distance = np.hypot(dx - along * ex, dy - along * ey)
    chord = 2.0 * np.sqrt(np.maximum(radius * radius - distance * distance, (0.5 * radius) ** 2))
    height = np.minimum(1.0, (abs(b[2] - a[2]) + chord) / (slab[1] - slab[0]))
    area = cover(distance - radius, pixel) * min(1.0, 2.0 * radius / pixel)
    window = filled[rows, columns]
    np.maximum(window, area * height, out=window)

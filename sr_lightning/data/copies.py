"""Search for images that show the same picture: equal, cropped, rescaled, compressed, flipped or rotated by 90 degrees.

As in image retrieval (Lowe, "Distinctive image features from scale-invariant keypoints", 2004; Sivic and Zisserman,
"Video Google", 2003): gradients around corners at many scales are matched through an inverted file of clusters. Of two
images with several matches a common scale and shift is sought, and then the part that both show is compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WORKING_SIDE = 320  # pixels of the longer side to which larger images are reduced
SMALLEST_SIDE = 24  # pixels of the shorter side of the smallest level
STEP = 2 ** (1 / 3)  # between two levels
SPACING = 8  # least distance of two corners of a level, in its pixels
CONTRAST = 9.0  # least strength of a corner, squared grey levels
CELLS = (-8, -4, 0, 4)  # first pixels, counted from the corner, of the cells of 5 pixels in which gradients are summed
CLUSTERS, PROBES = 1024, 3  # of descriptors, and those in which a match is looked up
SIMILAR = 0.97  # least cosine of two descriptors that match
MATCHES = 4  # least number in different places with a common scale and shift
COMPARED_SIDE = 48  # pixels of the longer side at which two images are compared
CORRELATION = 0.85  # least correlation of two copies: in the benchmark copies exceed 0.95, others stay below 0.75
SYMMETRIES = range(8)  # sum of 1 (reverse the rows), 2 (reverse the columns) and 4 (then exchange rows and columns)

_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


@dataclass(frozen=True)
class Copy:
    """Two images that show the same picture, or parts of it.

    Attributes:
        first: Index of the later image.
        second: Index of the earlier image.
        symmetry: One of SYMMETRIES, which turns the first like the second.
        scale: Pixels of the second for one of the first, both reduced to WORKING_SIDE.
        share: Share of the smaller image that both show, 0 to 1.
        correlation: Of what both show, -1 to 1.
    """

    first: int
    second: int
    symmetry: int
    scale: float
    share: float
    correlation: float


@dataclass(frozen=True)
class Corners:
    """Corners of an image at all scales.

    Attributes:
        places: (K, 2) float32, row and column in pixels of the image.
        scales: (K,) float32, image pixels for one pixel of the corner's level.
        descriptors: (K, 64) float32 of norm 1: 4 directions of gradients in 4 x 4 cells.
    """

    places: Tensor
    scales: Tensor
    descriptors: Tensor


def thumbnail(image: np.ndarray) -> Tensor:
    """Reduce uint8 planes (1 or 3, H, W) to brightness of at most WORKING_SIDE pixels a side, (1, 1, h, w) uint8."""
    gray = torch.from_numpy(image.mean(axis=0, dtype=np.float32))[None, None]
    side = max(gray.shape[-2:])
    return (gray if side <= WORKING_SIDE else _rescale(gray, WORKING_SIDE / side)).round().byte()


def find_corners(image: Tensor) -> Corners:
    """Find and describe the corners of a `thumbnail`. A small one is enlarged first."""
    image = image.float()
    size = image.shape[-2:]
    factor = 2.0 if max(size) < WORKING_SIDE / 2 else 1.0
    places, scales, descriptors = [torch.empty(0, 2)], [torch.empty(0)], [torch.empty(0, 4 * len(CELLS) ** 2)]
    while min(size) * factor >= SMALLEST_SIDE:
        level = _rescale(image, factor)
        found, described = _describe(blur(level))
        pixel = torch.tensor([whole / side for whole, side in zip(size, level.shape[-2:], strict=True)])
        places.append((found + 0.5) * pixel)
        scales.append(pixel.mean().expand(len(found)))
        descriptors.append(described)
        factor /= STEP
    return Corners(torch.cat(places), torch.cat(scales), torch.cat(descriptors))


def describe(image: np.ndarray) -> tuple[Tensor, Corners]:
    """Reduce uint8 planes (1 or 3, H, W) to a `thumbnail`, and find its corners."""
    small = thumbnail(image)
    return small, find_corners(small)


def find_copies(described: Sequence[tuple[Tensor, Corners]]) -> list[Copy]:
    """Find the pairs of images that show the same picture, the most similar symmetry of each, sorted by index.

    Args:
        described: Results of `describe`.
    """
    images, corners = zip(*described, strict=True)
    places, scales = (torch.cat([getattr(one, name) for one in corners]) for name in ("places", "scales"))
    image_of = torch.repeat_interleave(torch.tensor([len(one.places) for one in corners]))
    descriptors = torch.cat([one.descriptors for one in corners])
    copies: dict[tuple[int, int], Copy] = {}
    if len(descriptors) == 0:
        return []
    for symmetry, first, second in _matches(descriptors, image_of):
        for one, other in _groups(image_of[first], image_of[second], len(images), MATCHES):
            a, b = first[one], second[one]
            i, j = other
            turned = _turn_places(places[a], images[i].shape[-2:], symmetry)
            fit = _common_scale(*(part.numpy() for part in (turned, places[b], scales[a], scales[b])))
            if fit is None:
                continue
            correlation, share = _compare(turn(images[i], symmetry).float(), images[j].float(), *fit)
            if correlation >= max(CORRELATION, copies[i, j].correlation if (i, j) in copies else 0):
                copies[i, j] = Copy(i, j, symmetry, fit[0], share, correlation)
    return [copies[pair] for pair in sorted(copies)]


def _rescale(image: Tensor, factor: float) -> Tensor:
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    return image if factor == 1 else F.interpolate(image, size=size, mode="bilinear", antialias=True)


def blur(image: Tensor) -> Tensor:
    """Blur (1, 1, h, w) by five binomial weights along each axis."""
    image = F.pad(image, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(image, _BINOMIAL.view(1, 1, 5, 1)), _BINOMIAL.view(1, 1, 1, 5))


def details(image: Tensor) -> Tensor:
    """Remove the coarse brightness of (1, 1, h, w): the mean of 9 x 9 pixels."""
    return image - F.avg_pool2d(F.pad(image, (4, 4, 4, 4), mode="replicate"), 9, 1)


def _describe(level: Tensor) -> tuple[Tensor, Tensor]:
    """Find the corners of a level, (K, 2), and describe the gradients around them, (K, 64)."""
    padded = F.pad(level, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    xx, yy, xy = (blur(blur(product)) for product in (dx * dx, dy * dy, dx * dy))
    strength = (xx + yy - ((xx - yy) ** 2 + 4 * xy**2).sqrt()) / 2  # Shi and Tomasi, "Good features to track", 1994
    highest = F.max_pool2d(strength, (2 * SPACING + 1, 1), 1, (SPACING, 0))  # one axis at a time is faster
    highest = F.max_pool2d(highest, (1, 2 * SPACING + 1), 1, (0, SPACING))
    inner = slice(-CELLS[0], CELLS[0])
    corner = (strength == highest) & (strength > CONTRAST)
    found = corner[0, 0, inner, inner].nonzero() - CELLS[0]  # (K, 2)
    sums = F.avg_pool2d(torch.cat([dx.relu(), (-dx).relu(), dy.relu(), (-dy).relu()], dim=1), 5, 1)[0]
    rows, columns = (found[:, axis, None] + torch.tensor(CELLS) for axis in (0, 1))  # (K, 4)
    described = sums[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)  # (K, 4, 4, 4)
    return found.float(), F.normalize(described.flatten(1).sqrt())


def turn(image: Tensor, symmetry: int) -> Tensor:
    """Flip and rotate (..., h, w) by one of SYMMETRIES."""
    axes = [axis for bit, axis in ((1, -2), (2, -1)) if symmetry & bit]
    return image.flip(axes).mT if symmetry & 4 else image.flip(axes)


def _turn_places(places: Tensor, size: Sequence[int], symmetry: int) -> Tensor:
    row, column = places.unbind(dim=1)
    row = size[0] - row if symmetry & 1 else row
    column = size[1] - column if symmetry & 2 else column
    return torch.stack([column, row] if symmetry & 4 else [row, column], dim=1)


def _turn_descriptors(descriptors: Tensor, symmetry: int) -> Tensor:
    cells = turn(descriptors.view(-1, 4, len(CELLS), len(CELLS)), symmetry)
    right, left, down, up = range(4)
    vertical = [up, down] if symmetry & 1 else [down, up]
    horizontal = [left, right] if symmetry & 2 else [right, left]
    return cells[:, vertical + horizontal if symmetry & 4 else horizontal + vertical].flatten(1)


def _matches(descriptors: Tensor, image_of: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each symmetry with the similar corners of two images, the turned one in the later image."""
    count = max(1, min(CLUSTERS, len(descriptors) // 64))
    centres = _cluster_centres(descriptors, count)
    members = _by_cluster(_nearest(descriptors, centres, 1), count)
    for symmetry in SYMMETRIES:
        turned = _turn_descriptors(descriptors, symmetry)
        asking = _by_cluster(_nearest(turned, centres, min(PROBES, count)), count)
        first, second = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
        for here, there in zip(asking, members, strict=True):
            row, column = (turned[here] @ descriptors[there].T > SIMILAR).nonzero(as_tuple=True)
            a, b = here[row], there[column]
            later = image_of[a] > image_of[b]
            first.append(a[later])
            second.append(b[later])
        yield symmetry, torch.cat(first), torch.cat(second)


def _cluster_centres(descriptors: Tensor, count: int) -> Tensor:
    """Cluster a sample of descriptors by k-means on the sphere: (count, 64)."""
    chosen = torch.randperm(len(descriptors), generator=torch.Generator().manual_seed(0))[:50_000]
    sample = descriptors[chosen]
    centres = sample[:count]
    for _ in range(5):
        nearest = _nearest(sample, centres, 1)[:, 0]
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, nearest, sample))
    return centres


def _nearest(descriptors: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return the nearest clusters of each descriptor, (K, count)."""
    parts = [(part @ centres.T).topk(count, dim=1).indices for part in descriptors.split(1 << 14)]
    return torch.cat([torch.empty(0, count, dtype=torch.long), *parts])


def _by_cluster(cluster: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the rows of `cluster` (K, n) in which each cluster appears."""
    order = cluster.flatten().argsort(stable=True)
    return (order // cluster.shape[1]).split(cluster.flatten().bincount(minlength=count).tolist())


def _groups(first: Tensor, second: Tensor, images: int, least: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield the matches of two images, as indices, and the two images, if there are enough of them."""
    pair, order = (first * images + second).sort(stable=True)
    pairs, counts = pair.unique_consecutive(return_counts=True)
    for number, group in zip(pairs.tolist(), order.split(counts.tolist()), strict=True):
        if len(group) >= least:
            yield group, divmod(number, images)


def _common_scale(
    p: np.ndarray, q: np.ndarray, p_scale: np.ndarray, q_scale: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Find scale and shift, q = scale * p + shift, of the most matches; None if these are too few.

    Every pair of matches proposes one, if it agrees with the scales of their corners.

    Args:
        p: (K, 2) places in the first image.
        q: (K, 2) places in the second image.
        p_scale: (K,) scales of the corners of the first.
        q_scale: (K,) scales of the corners of the second.
    """
    p, q, p_scale, q_scale = (values[:80].astype(float) for values in (p, q, p_scale, q_scale))
    guess = np.log(q_scale / p_scale)
    step_p, step_q = p[:, None] - p, q[:, None] - q
    far = (step_p**2).sum(-1)
    scale = np.maximum((step_p * step_q).sum(-1) / np.maximum(far, 1e-6), 1e-3)
    agree = (far > (8 * p_scale[:, None]) ** 2) & (abs(np.log(scale) - guess) < 0.3)
    agree &= ((step_q - scale[..., None] * step_p) ** 2).sum(-1) < (4 * q_scale[:, None]) ** 2
    i, j = np.nonzero(np.triu(agree & agree.T))
    if len(i) == 0:
        return None
    if len(i) > 500:
        i, j = (index[:: len(i) // 500 + 1] for index in (i, j))
    scale = scale[i, j, None]  # (proposals, 1)
    shift = (q[i] + q[j] - scale * (p[i] + p[j])) / 2
    error = ((q - scale[..., None] * p - shift[:, None]) ** 2).sum(-1)  # (proposals, K)
    good = (error < (2.5 * np.maximum(q_scale, scale * p_scale)) ** 2) & (abs(np.log(scale) - guess) < 0.3)
    best = good[good.sum(1).argmax()]
    p, q = p[best], q[best]
    if len(np.unique(np.round(p / (6 * p_scale[best].min())), axis=0)) < MATCHES:  # one place at several scales is one
        return None
    centred = p - p.mean(0)
    fitted = float((centred * (q - q.mean(0))).sum() / (centred**2).sum())
    return (fitted, q.mean(0) - fitted * p.mean(0)) if fitted > 0 else None


def _compare(a: Tensor, b: Tensor, scale: float, shift: np.ndarray) -> tuple[float, float]:
    """Correlate the parts that two images share without their coarse brightness, which unrelated photos have in common.

    Args:
        a: (1, 1, h, w) float32.
        b: (1, 1, h, w) float32.
        scale: Pixels of b for one of a.
        shift: Pixel of b = scale * pixel of a + shift.

    Returns:
        The highest correlation over shifts by one compared pixel; and the share of the smaller image.
    """
    size_a, size_b = (np.array(image.shape[-2:]) for image in (a, b))
    low, high = np.maximum(shift, 0), np.minimum(shift + scale * size_a, size_b)
    parts = []
    for image, start, end in ((a, (low - shift) / scale, (high - shift) / scale), (b, low, high)):
        (top, left), (bottom, right) = start.round().astype(int), end.round().astype(int)
        part = image[..., top:bottom, left:right]
        if min(part.shape[-2:]) < 8:
            return 0.0, 0.0
        size = [max(8, round(side * COMPARED_SIDE / max(high - low))) for side in (high - low).tolist()]
        part = F.interpolate(part, size=size, mode="bilinear", antialias=True)
        parts.append(details(part))
    share = float((high - low).prod() / min(scale**2 * size_a.prod(), size_b.prod()))
    windows = F.unfold(parts[0], [side - 2 for side in size])[0].T  # (9, inner pixels)
    inner = parts[1][..., 1:-1, 1:-1].reshape(1, -1)
    windows, inner = (values - values.mean(1, keepdim=True) for values in (windows, inner))
    return F.cosine_similarity(windows, inner).max().item(), share

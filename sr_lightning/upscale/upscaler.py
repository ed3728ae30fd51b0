"""A trained network for pictures of any kind: PIL images, arrays, tensors."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import load_best
from sr_lightning.errors import InputError
from sr_lightning.images.photo import as_photo
from sr_lightning.inference import FastForm, SelfEnsemble, super_resolve
from sr_lightning.networks import Bicubic
from sr_lightning.upscale.tiles import SMALLEST, Box, automatic_tile, in_pieces

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")
MARGIN = 32  # LR pixels around a tile of a network that depends on the whole image
FILLED = 4  # LR pixels around the visible ones that lend their colour to invisible ones

Write = Callable[[slice, slice, Tensor], None]  # rows and columns of the result, and its part (C, h, w)
Progress = Callable[[float], object]  # is told which share of the image has been done since the last call


class Upscaler:
    """A network with all that it takes to enlarge a picture, whatever its size, channels and depth.

    Colour goes through one-channel networks as luma, with bicubic chroma; gray goes through three-channel ones as
    gray RGB. An alpha channel is enlarged bicubically. Where all that is fully transparent has one colour, which says
    nothing, that colour is not mixed into the edges of what is visible.

    Args:
        network: Has `scale`, `num_channels` and `receptive_radius`; a copy is made.
        name: Of the model.
        steps: Batches it was trained for, if known.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        precision: Of the convolutions: "float32" (on GPUs without TF32), "bfloat16", which is faster on processors that
            have it and off by about a grey level, or "auto", which is bfloat16 where that costs next to no PSNR.
        tile: Side of the tiles in LR pixels; 0: the whole image at once. "auto": a side that is fast and takes little
            memory, and the whole image where it is no larger, or where each output pixel depends on all of it.
        self_ensemble: Average over eight flips and rotations, in eight times the time.

    Raises:
        InputError: An option that is none of the above, or a GPU that is not there.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        steps: int | None = None,
        device: str = "auto",
        precision: str = "float32",
        tile: int | str = "auto",
        self_ensemble: bool = False,
    ) -> None:
        wrong = []
        if device not in ("auto", "cpu", "cuda"):
            wrong.append(f"device={device!r}: auto, cpu or cuda")
        elif device == "cuda" and not torch.cuda.is_available():
            wrong.append("device='cuda': torch finds no GPU here; leave it at auto, or say cpu")
        if precision not in PRECISIONS:
            wrong.append(f"precision={precision!r}: {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
        if tile not in ("auto", 0) and not (isinstance(tile, int) and tile >= SMALLEST):
            wrong.append(f"tile={tile!r}: auto, 0 (the whole image) or at least {SMALLEST}")
        if wrong:
            raise InputError("; ".join(wrong))
        self.name, self.steps, self.tile = name, steps, tile
        self.device = torch.device(
            "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
        )
        self._parameters = sum(parameter.numel() for parameter in network.parameters())
        self._architecture = type(network).__name__
        fast = FastForm(network, self.device, precision)
        self.precision = fast.precision
        self.network = SelfEnsemble(fast) if self_ensemble else fast
        self.self_ensemble = self_ensemble
        self.scale: int = network.scale
        self._bicubic = Bicubic(scale=self.scale).to(self.device)

    @classmethod
    def load(cls, path: str | Path, **options: object) -> "Upscaler":
        """The network of a checkpoint, or of the best one in a run's directory.

        Raises:
            InputError: The file is missing, unreadable or not of this project; or as of the class.
        """
        trained = load_best(path)
        return cls(trained.network, trained.name, steps=trained.step, **options)

    def __repr__(self) -> str:
        channels = "luma" if self.network.num_channels == 1 else "RGB"
        steps = "" if self.steps is None else f", {self.steps:,} steps"
        radius = "the whole image" if self.global_ else f"{self.network.receptive_radius} pixels around"
        ensemble = ", self-ensemble" if self.self_ensemble else ""
        return (
            f"Upscaler({self.name} x{self.scale}: {self._architecture} on {channels}, {self._parameters:,} parameters"
            f"{steps}, sees {radius}; {self.precision} on {self.device}, tile={self.tile}{ensemble})"
        )

    @property
    def global_(self) -> bool:
        """Whether every output pixel depends on the whole image, so that tiles give another result."""
        return self.network.receptive_radius is None

    def upscale(
        self, image: Image.Image | np.ndarray | Tensor, progress: Progress | None = None
    ) -> Image.Image | np.ndarray | Tensor:
        """Enlarge a picture; the result is of the same kind, depth and channels.

        Args:
            image: One of
                a PIL image: the result is upright if EXIF says that it is not, palettes, CMYK and 1-bit become RGB
                and gray, and metadata that the result can have stays in its `info`;
                a NumPy array (H, W) or (H, W, C), uint8, uint16, or floating point in [0, 1];
                a tensor (C, H, W) or (N, C, H, W), uint8, uint16, or floating point in [0, 1], on any device.
                C is 1 (gray), 3 (RGB), 2 or 4 (with alpha).
            progress: Called after each tile with the share of the work that it was.

        Raises:
            InputError: Anything else, or not enough memory for the smallest tile.
        """
        progress = progress or (lambda share: None)
        if isinstance(image, Image.Image):
            return self._upscale_photo(as_photo(image), progress)
        if isinstance(image, np.ndarray):
            return self._upscale_array(image, progress)
        if isinstance(image, Tensor):
            return self._upscale_tensor(image, progress)
        way_out = ": open it first, Image.open(path)" if isinstance(image, str | Path) else ""
        raise InputError(f"upscale takes a PIL image, a NumPy array or a tensor, not a {type(image).__name__}{way_out}")

    def _upscale_photo(self, photo: Image.Image, progress: Progress) -> Image.Image:
        width, height = photo.size
        if 0 in photo.size:
            raise InputError(f"an image without pixels, {width}x{height}")
        result = Image.new(photo.mode, (width * self.scale, height * self.scale), None)

        def paste(rows: slice, columns: slice, part: Tensor) -> None:
            pixels = part[0] if len(part) == 1 else part.permute(1, 2, 0).contiguous()  # (h, w) or (h, w, C)
            result.paste(Image.fromarray(pixels.numpy()), (columns.start, rows.start))

        pixels = torch.from_numpy(np.array(photo))
        self._enlarge(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1), paste, progress)
        result.info = dict(photo.info)
        return result

    def _upscale_array(self, image: np.ndarray, progress: Progress) -> np.ndarray:
        if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4) or 0 in image.shape:
            hint = ": move its channels last, np.moveaxis(image, 0, -1)" if _is_planar(image.shape) else ""
            raise InputError(f"an array is (H, W) or (H, W, C) with C from 1 to 4, not {image.shape}{hint}")
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
            raise InputError(f"an array is uint8, uint16 or floating point, not {image.dtype}")
        if not image.flags.writeable or min(image.strides) < 0:  # which torch does not take
            image = image.copy()
        height, width = image.shape[:2]
        result = np.empty((height * self.scale, width * self.scale, *image.shape[2:]), image.dtype)
        planes, out = (
            torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)
            for array in (image, result)
        )
        _check_range(planes)
        self._enlarge(planes, _into(out), progress)
        return result

    def _upscale_tensor(self, image: Tensor, progress: Progress) -> Tensor:
        if image.ndim not in (3, 4) or not 1 <= image.shape[-3] <= 4 or 0 in image.shape:
            hint = ": move its channels first, image.movedim(-1, -3)" if _is_planar(image.shape[::-1]) else ""
            raise InputError(
                f"a tensor is (C, H, W) or (N, C, H, W) with C from 1 to 4, not {tuple(image.shape)}{hint}"
            )
        if image.dtype not in (torch.uint8, torch.uint16) and not image.is_floating_point():
            raise InputError(f"a tensor is uint8, uint16 or floating point, not {image.dtype}")
        image = image.detach()
        _check_range(image)
        height, width = image.shape[-2:]
        result = image.new_empty(*image.shape[:-2], height * self.scale, width * self.scale)
        images, results = (image[None], result[None]) if image.ndim == 3 else (image, result)
        for planes, out in zip(images, results, strict=True):
            self._enlarge(planes, _into(out), lambda share: progress(share / len(images)))
        return result

    def _enlarge(self, planes: Tensor, write: Write, progress: Progress) -> None:
        """Enlarge planes (C, H, W) of any depth; only tiles are on the device."""
        height, width = planes.shape[-2:]
        if len(planes) in (2, 4):
            planes = fill_invisible(planes)

        def compute(box: Box, around: Box) -> Tensor:
            lr = planes[:, around.top : around.bottom, around.left : around.right].to(self.device)
            return self._enlarge_tile(lr, box.within(around, self.scale)).to(planes.device)

        scale, share = self.scale, 1 / (height * width)
        for box, sr in in_pieces(compute, height, width, self.margin, self._tile_for(height, width)):
            if self.global_ and box.top == box.left == 0 and box != Box(0, height, 0, width):
                log.warning(
                    "%s looks at the whole image, which its tiles do not: the result is another, and brightness may "
                    "differ from tile to tile; tile=0 takes the whole image",
                    self._architecture,
                )
            rows = slice(box.top * scale, box.bottom * scale)
            write(rows, slice(box.left * scale, box.right * scale), sr)  # (C, h, w)
            progress(box.height * box.width * share)

    @torch.inference_mode()
    def _enlarge_tile(self, lr: Tensor, inside: tuple[slice, slice]) -> Tensor:
        """Planes (C, h, w) -> the rows and columns `inside` of their enlargement, in the same depth."""
        dtype, levels = lr.dtype, {torch.uint8: 255, torch.uint16: 65535}.get(lr.dtype, 1)
        lr = lr[None].to(torch.float32) / levels
        colours = lr.shape[1] - (lr.shape[1] in (2, 4))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # for chroma and alpha
            sr = super_resolve(self.network, lr[:, :colours])
            if colours < lr.shape[1]:
                sr = torch.cat([sr, self._bicubic(lr[:, colours:])], dim=1)
        sr = sr[0, :, inside[0], inside[1]].clamp(0, 1)
        return (sr.mul_(levels).add_(0.5).floor_() if levels > 1 else sr).to(dtype)

    @property
    def margin(self) -> int:
        """LR pixels around a tile that are computed with it; chroma and alpha, too, look around."""
        return MARGIN if self.global_ else max(self.network.receptive_radius, Bicubic.receptive_radius)

    @cached_property
    def _automatic(self) -> int:
        return automatic_tile(self.network, self.margin, self.device)

    def _tile_for(self, height: int, width: int) -> int | None:
        if self.tile != "auto":
            return self.tile or None
        if self.global_ or height * width <= (self._automatic + 2 * self.margin) ** 2:
            return None
        return self._automatic


def fill_invisible(planes: Tensor) -> Tensor:
    """Give what is fully transparent the colour of what is visible beside it, as far as an edge looks.

    Only where all of it has one colour (black or white, mostly): where there are several, it is a picture that alpha
    does not hide.

    Args:
        planes: (2 or 4, H, W), alpha last.

    Returns:
        As given, in another tensor where something changed.
    """
    array = (planes.float() if planes.dtype == torch.bfloat16 else planes).cpu().numpy()
    hidden = array[-1] == 0
    colours = array[:-1, hidden]  # (C, n)
    if not hidden.any() or hidden.all() or (colours != colours[:, :1]).any():
        return planes
    filled = np.pad(array[:-1], [(0, 0), (1, 1), (1, 1)])
    known = np.pad(~hidden, 1)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for _ in range(FILLED):
        near = np.zeros_like(hidden)
        for i, j in around:
            near |= known[1 + i : known.shape[0] - 1 + i, 1 + j : known.shape[1] - 1 + j]
        rows, columns = (near & ~known[1:-1, 1:-1]).nonzero()
        rows, columns = rows + 1, columns + 1
        weights = np.stack([known[rows + i, columns + j] for i, j in around]).astype(np.float32)  # (9, n)
        values = np.stack([filled[:, rows + i, columns + j] for i, j in around], axis=1)  # (C, 9, n)
        filled[:, rows, columns] = (values * weights).sum(1) / weights.sum(0)
        known[rows, columns] = True
    colours = torch.from_numpy(filled[:, 1:-1, 1:-1]).to(planes.device, planes.dtype)
    return torch.cat([colours, planes[-1:]])


def _into(out: Tensor) -> Write:
    def write(rows: slice, columns: slice, part: Tensor) -> None:
        out[:, rows, columns] = part

    return write


def _is_planar(shape: tuple[int, ...]) -> bool:
    """Whether a shape seems to have its channels first."""
    return len(shape) == 3 and 1 <= shape[0] <= 4 < min(shape[1:])


def _check_range(image: Tensor) -> None:
    if not image.is_floating_point():
        return
    low, high = image.min().item(), image.max().item()
    if not 0 <= low <= high <= 1:  # NaN as well
        raise InputError(
            f"floating-point values from {low:g} to {high:g}: an image is in [0, 1]; divide 8-bit values by 255"
        )

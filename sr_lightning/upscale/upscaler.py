"""A trained network that upscales PIL images, arrays and tensors of any size."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sr_lightning.checkpoints.checkpoint import Allow, Trained
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.degradations import resize_strips
from sr_lightning.errors import InputError
from sr_lightning.images.photo import as_photo
from sr_lightning.inference import FastInference, SelfEnsemble, super_resolve
from sr_lightning.networks import Bicubic
from sr_lightning.runs.folder import find_checkpoint
from sr_lightning.upscale.options import check_options
from sr_lightning.upscale.size import passes
from sr_lightning.upscale.tiles import Box, automatic_pixels, automatic_tile, tile_map
from sr_lightning.upscale.transfers import Transfers
from sr_lightning.utils.cuda_graphs import Replays
from sr_lightning.utils.devices import select_device
from sr_lightning.utils.exact_float32 import exact_float32

log = logging.getLogger(__name__)

WHOLE = slice(None), slice(None)
GLOBAL_MARGIN = 32  # LR pixels around a tile of a network that depends on the whole image
ALPHA_BLEED = 4  # LR pixels: distance to which visible colour is spread into transparent pixels

Part = tuple[slice, slice, Tensor]  # rows and columns of the result, and its part (C, h, w)
Write = Callable[[slice, slice, Tensor], None]  # takes a part
Progress = Callable[[float], object]  # receives the share of the image done since the last call


class Upscaler:
    """A network that upscales images of any size, number of channels and depth.

    A one-channel network gets the luma of colour images, and chroma is upscaled bicubically; a three-channel network
    gets gray images as gray RGB. Alpha is upscaled bicubically. If all fully transparent pixels have one colour, which
    is then meaningless, that colour does not bleed into visible pixels. Threads may share an upscaler; it can be copied
    and pickled.

    Args:
        network: Has `scale`, `num_channels` and `receptive_radius`; it is copied.
        name: The model's name in messages.
        steps: Number of training batches, if known.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or, of several GPUs, "cuda:1".
        precision: Of the convolutions: "float32" (on GPUs without TF32); "bfloat16", faster on some processors, or
            "float16" on GPUs, off by about a grey level; or "auto", the fastest as measured on this machine, if its
            loss of PSNR is negligible.
        tile: Side of the tiles in LR pixels; 0: the whole image at once. "auto": a side that is fast and needs little
            memory; the whole image if it is no larger, or if each output pixel depends on all of it.
        self_ensemble: Average over eight flips and rotations, in eight times the time.

    Attributes:
        scale: The factor.
        precision: "float32", "bfloat16" or "float16".
        read: Reads the network again as trained, of which only a form that is fast is kept; None if not from a file.

    Raises:
        InputError: An invalid option, or no such GPU.
    """

    read: Callable[[], Trained] | None = None

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
        check_options(device, precision, tile)
        self.name, self.steps, self.tile = name, steps, tile
        self.device = select_device(device)
        self._parameters = sum(parameter.numel() for parameter in network.parameters())
        self._architecture = type(network).__name__
        fast = FastInference(network, self.device, precision)
        self.precision = fast.precision
        self._replays = Replays(self.device) if fast.as_graph else None
        self._transfers = Transfers(self.device)
        self.network = SelfEnsemble(fast) if self_ensemble else fast
        self.self_ensemble = self_ensemble
        self.scale: int = network.scale
        self._bicubic = Bicubic(scale=self.scale).to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out graphs and streams, which a copy has of its own."""
        return self.__dict__ | {"_replays": self._replays is not None, "_transfers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._replays = Replays(self.device) if state["_replays"] else None
        self._transfers = Transfers(self.device)

    @classmethod
    def load(
        cls, path: str | Path, allow: Allow = None, network: Mapping[str, object] | None = None, **options: object
    ) -> "Upscaler":
        """Load the network of a file of weights, or of the best checkpoint in a run's directory.

        Args:
            path: The file, of this project or another, or the directory.
            allow: Packages besides this project, or classes, that the checkpoint may name as its network.
            network: Settings of the network that another project's file does not show, such as {"scale": 2} for VDSR.
            **options: Keyword arguments of the class.

        Raises:
            InputError: The file is missing, damaged, or of a network that is not known here; or as for the class.
        """
        read = partial(load_any, find_checkpoint(path), allow, dict(network or {}))
        trained = read()
        upscaler = cls(trained.network, trained.name, steps=trained.step, **options)
        upscaler.read = read
        return upscaler

    def __repr__(self) -> str:
        channels = "luma" if self.network.num_channels == 1 else "RGB"
        steps = "" if self.steps is None else f", {self.steps:,} steps"
        radius = "the whole image" if self.sees_whole_image else f"{self.network.receptive_radius} pixels around"
        ensemble = ", self-ensemble" if self.self_ensemble else ""
        return (
            f"Upscaler({self.name} x{self.scale}: {self._architecture} on {channels}, {self._parameters:,} parameters"
            f"{steps}, sees {radius}; {self.precision} on {self.device}, tile={self.tile}{ensemble})"
        )

    @property
    def sees_whole_image(self) -> bool:
        """Return True if every output pixel depends on the whole image, so that tiles change the result."""
        return self.network.receptive_radius is None

    def upscale(
        self,
        image: Image.Image | np.ndarray | Tensor,
        progress: Progress | None = None,
        size: tuple[int, int] | None = None,
    ) -> Image.Image | np.ndarray | Tensor:
        """Upscale an image; the result has the same type, depth and channels.

        Args:
            image: One of
                a PIL image: EXIF rotation is applied, palettes, CMYK and 1-bit become RGB and gray, and metadata that
                the result can have stays in its `info`;
                a NumPy array (H, W) or (H, W, C), uint8, uint16, or floating point in [0, 1];
                a tensor (C, H, W) or (N, C, H, W), uint8, uint16, or floating point in [0, 1], on any device.
                C is 1 (gray), 3 (RGB), 2 or 4 (with alpha).
            progress: Called after each tile with its share of the work.
            size: Width and height of the result, neither smaller than the image's: as many passes of the network as
                reach them, then antialiased bicubic as MATLAB's. None: the network's scale.

        Raises:
            InputError: Another type, shape or range; a size below the image's; or not enough memory for the
                smallest tile.
        """
        progress = progress or (lambda share: None)
        if isinstance(image, Image.Image):
            return self._upscale_photo(as_photo(image), progress, size)
        if isinstance(image, np.ndarray):
            return self._upscale_array(image, progress, size)
        if isinstance(image, Tensor):
            return self._upscale_tensor(image, progress, size)
        way_out = ": open it first, Image.open(path)" if isinstance(image, str | Path) else ""
        raise InputError(f"upscale takes a PIL image, a NumPy array or a tensor, not a {type(image).__name__}{way_out}")

    def _size_of(self, width: int, height: int, size: tuple[int, int] | None) -> tuple[int, int]:
        """Return width and height of the result."""
        if size is not None and (size[0] < width or size[1] < height):
            raise InputError(f"size={size}: smaller than the image of {width}x{height}")
        return size or (width * self.scale, height * self.scale)

    def _upscale_photo(self, photo: Image.Image, progress: Progress, size: tuple[int, int] | None) -> Image.Image:
        width, height = photo.size
        if 0 in photo.size:
            raise InputError(f"an image of {width}x{height} has no pixels")
        result = Image.new(photo.mode, self._size_of(width, height, size), None)

        def paste(rows: slice, columns: slice, part: Tensor) -> None:
            pixels = part[0] if len(part) == 1 else part.permute(1, 2, 0).contiguous()  # (h, w) or (h, w, C)
            result.paste(Image.fromarray(pixels.numpy()), (columns.start, rows.start))

        pixels = torch.from_numpy(np.array(photo))
        planes = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        self._enlarge(planes, result.size, paste, progress)
        result.info = dict(photo.info)
        return result

    def _upscale_array(self, image: np.ndarray, progress: Progress, size: tuple[int, int] | None) -> np.ndarray:
        if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4) or 0 in image.shape:
            hint = ": move its channels last, np.moveaxis(image, 0, -1)" if _is_planar(image.shape) else ""
            raise InputError(f"an array must be (H, W) or (H, W, C) with C from 1 to 4, not {image.shape}{hint}")
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
            raise InputError(f"an array must be uint8, uint16 or floating point, not {image.dtype}")
        if not image.flags.writeable or min(image.strides) < 0:  # torch does not support these
            image = image.copy()
        width, height = self._size_of(image.shape[1], image.shape[0], size)
        result = np.empty((height, width, *image.shape[2:]), image.dtype)
        planes, out = (
            torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)
            for array in (image, result)
        )
        _check_range(planes)
        self._enlarge(planes, (width, height), _into(out), progress)
        return result

    def _upscale_tensor(self, image: Tensor, progress: Progress, size: tuple[int, int] | None) -> Tensor:
        if image.ndim not in (3, 4) or not 1 <= image.shape[-3] <= 4 or 0 in image.shape:
            hint = ": move its channels first, image.movedim(-1, -3)" if _is_planar(image.shape[::-1]) else ""
            raise InputError(
                f"a tensor must be (C, H, W) or (N, C, H, W) with C from 1 to 4, not {tuple(image.shape)}{hint}"
            )
        if image.dtype not in (torch.uint8, torch.uint16) and not image.is_floating_point():
            raise InputError(f"a tensor must be uint8, uint16 or floating point, not {image.dtype}")
        image = image.detach()
        _check_range(image)
        width, height = self._size_of(image.shape[-1], image.shape[-2], size)
        result = image.new_empty(*image.shape[:-2], height, width)
        images, results = (image[None], result[None]) if image.ndim == 3 else (image, result)
        for planes, out in zip(images, results, strict=True):
            self._enlarge(planes, (width, height), _into(out), lambda share: progress(share / len(images)))
        return result

    def _enlarge(self, planes: Tensor, size: tuple[int, int], write: Write, progress: Progress) -> None:
        """Upscale planes (C, H, W) of any depth to a size (width, height).

        The result of the last pass is reduced strip by strip; those of earlier ones are smaller than the result.
        """
        height, width = planes.shape[-2:]
        factors = [self.scale**i for i in range(passes((width, height), size, self.scale))]  # before each pass
        shares = [factor**2 / sum(f**2 for f in factors) for factor in factors]
        for share in shares[:-1]:
            larger = planes.new_empty(len(planes), *(side * self.scale for side in planes.shape[-2:]))
            for rows, columns, part in self._parts(planes, lambda done, share=share: progress(done * share)):
                larger[:, rows, columns] = part
            planes = larger
        parts = self._parts(planes, lambda done: progress(done * shares[-1]))
        large = planes.shape[-1] * self.scale, planes.shape[-2] * self.scale
        for rows, columns, part in parts if size == large else _reduced(parts, large, size):
            write(rows, columns, part)

    def _parts(self, planes: Tensor, progress: Progress) -> Iterator[Part]:
        """Upscale planes (C, H, W) by the network's scale; only tiles are moved to the device.

        Raises:
            InputError: The output is not finite.
        """
        height, width = planes.shape[-2:]
        if len(planes) in (2, 4):
            planes = bleed_colour_into_transparent(planes)

        def begin(box: Box, around: Box) -> Callable[[], tuple[Tensor, Tensor]]:
            part = planes[:, around.top : around.bottom, around.left : around.right]
            sr, finite = self._compute(self._transfers.upload(part), box.slices_in(around, self.scale))
            return self._transfers.download(sr, finite, part)

        scale, share = self.scale, 1 / (height * width)
        alignment = getattr(self.network, "alignment", 1)
        tiles = tile_map(begin, height, width, self.margin, self._tile_for(height, width), alignment)
        for box, result in self._transfers.ahead(tiles):
            sr, finite = result()
            if not finite:
                raise InputError(
                    f"{self.name}: the output in {self.precision} is not finite (NaN or infinite): its training "
                    "diverged, or it needs precision float32"
                )
            if self.sees_whole_image and box.top == box.left == 0 and box != Box(0, height, 0, width):
                log.warning(
                    "%s depends on the whole image, but is applied to tiles: the result changes, and brightness may "
                    "differ between tiles. Set tile=0 to upscale the whole image at once",
                    self._architecture,
                )
            rows = slice(box.top * scale, box.bottom * scale)
            yield rows, slice(box.left * scale, box.right * scale), sr  # (C, h, w)
            progress(box.height * box.width * share)

    def _compute(self, lr: Tensor, inside: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Compute `_enlarge_tile`; a graph computes the whole tile, and serves wherever tiles have its shape."""
        if self._replays is None:
            return self._enlarge_tile(lr, inside)
        sr, finite = self._replays(self._enlarge_tile, lr)
        return sr[:, inside[0], inside[1]], finite

    @torch.inference_mode()
    def _enlarge_tile(self, lr: Tensor, inside: tuple[slice, slice] = WHOLE) -> tuple[Tensor, Tensor]:
        """Upscale planes (C, h, w) on the device, without waiting for it.

        Returns:
            The rows and columns `inside` of the result (C, H, W), in the same depth; () whether it is finite.
        """
        dtype, levels = lr.dtype, {torch.uint8: 255, torch.uint16: 65535}.get(lr.dtype, 1)
        lr = lr[None].to(torch.float32) / levels
        colours = lr.shape[1] - (lr.shape[1] in (2, 4))
        with exact_float32():  # for chroma and alpha
            sr = super_resolve(self.network, lr[:, :colours])
            if colours < lr.shape[1]:
                sr = torch.cat([sr, self._bicubic(lr[:, colours:])], dim=1)
        sr = sr[0, :, inside[0], inside[1]]
        finite = sr.isfinite().all()
        sr = sr.clamp(0, 1)
        return (sr.mul_(levels).add_(0.5).floor_() if levels > 1 else sr).to(dtype), finite

    @property
    def margin(self) -> int:
        """LR pixels around a tile that are computed with it, for the network and for bicubic chroma and alpha."""
        return GLOBAL_MARGIN if self.sees_whole_image else max(self.network.receptive_radius, Bicubic.receptive_radius)

    @cached_property
    def _automatic_pixels(self) -> int:
        return automatic_pixels(self.network, self.margin, self.device)

    def _tile_for(self, height: int, width: int) -> tuple[int, int] | None:
        if self.tile == "auto" and not self.sees_whole_image:
            return automatic_tile(height, width, self.margin, self._automatic_pixels)
        return (self.tile, self.tile) if isinstance(self.tile, int) and self.tile else None


def bleed_colour_into_transparent(planes: Tensor) -> Tensor:
    """Spread neighbouring visible colour, ALPHA_BLEED pixels wide, into fully transparent pixels.

    This is done only if all of these pixels have the same colour, such as black or white. Several colours are image
    content under the alpha channel and are left unchanged.

    Args:
        planes: (2 or 4, H, W), alpha last.

    Returns:
        The input if nothing changed, else a new tensor.
    """
    array = (planes.float() if planes.dtype == torch.bfloat16 else planes).cpu().numpy()
    hidden = array[-1] == 0
    colours = array[:-1, hidden]  # (C, n)
    if not hidden.any() or hidden.all() or (colours != colours[:, :1]).any():
        return planes
    filled = np.pad(array[:-1], [(0, 0), (1, 1), (1, 1)])
    known = np.pad(~hidden, 1)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for _ in range(ALPHA_BLEED):
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


def _reduced(parts: Iterable[Part], size: tuple[int, int], new_size: tuple[int, int]) -> Iterator[Part]:
    """Resize an image of a size (width, height) that arrives in parts; yield strips."""
    top = 0
    for strip in resize_strips(_strips(parts, size[0]), size[::-1], new_size[::-1]):
        strip = strip.clamp(0, 1) if strip.is_floating_point() else strip
        yield slice(top, top + strip.shape[1]), slice(0, new_size[0]), strip
        top += strip.shape[1]


def _strips(parts: Iterable[Part], width: int) -> Iterator[Tensor]:
    """Join the parts of `tile_map`, which end at different rows after memory ran out, to strips (C, rows, width)."""
    waiting, top = [], 0
    for rows, columns, part in parts:
        waiting.append((rows, columns, part))
        if columns.stop < width:
            continue
        bottom = rows.stop
        strip = part.new_empty(len(part), bottom - top, width)
        for inside, across, piece in waiting:
            first, last = max(inside.start, top), min(inside.stop, bottom)
            strip[:, first - top : last - top, across] = piece[:, first - inside.start : last - inside.start]
        yield strip
        waiting, top = [one for one in waiting if one[0].stop > bottom], bottom


def _into(out: Tensor) -> Write:
    def write(rows: slice, columns: slice, part: Tensor) -> None:
        out[:, rows, columns] = part

    return write


def _is_planar(shape: tuple[int, ...]) -> bool:
    """Return True if a shape seems to have its channels first."""
    return len(shape) == 3 and 1 <= shape[0] <= 4 < min(shape[1:])


def _check_range(image: Tensor) -> None:
    if not image.is_floating_point():
        return
    low, high = image.min().item(), image.max().item()
    if not 0 <= low <= high <= 1:  # NaN as well
        raise InputError(
            f"floating-point values from {low:g} to {high:g}: an image must be in [0, 1]; divide 8-bit values by 255"
        )

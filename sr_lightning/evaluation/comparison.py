"""Comparison pictures: one place of one image in every version, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from sr_lightning.color import to_uint8
from sr_lightning.images.files import write_image

PANEL = 320  # pixels of a panel's side
CAPTION = 24


@dataclass(frozen=True)
class Panel:
    """One version of an image.

    Attributes:
        caption: Such as "bicubic 30.12 dB".
        image: (1 or 3, H, W) in [0, 1], of the same size in all panels of a picture.
    """

    caption: str
    image: Tensor


def hardest_place(image: Tensor, hr: Tensor, size: int) -> tuple[int, int]:
    """Find top and left of the size x size window in which `image` differs most from `hr`.

    Args:
        image: (C, H, W) in [0, 1].
        hr: (C, H, W), the reference.
        size: At most H and W.
    """
    error = (image - hr).square().mean(dim=0)[None, None]  # (1, 1, H, W)
    windows = F.avg_pool2d(error, size, stride=max(size // 8, 1))[0, 0]
    row, column = divmod(int(windows.argmax()), windows.shape[1])
    return row * max(size // 8, 1), column * max(size // 8, 1)


def side_by_side(panels: Sequence[Panel], top: int, left: int, size: int) -> Image.Image:
    """Draw the whole last panel with the place marked, then that place of each panel, enlarged without smoothing.

    Args:
        panels: At least one; the last is the reference.
        top: First row of the place, in pixels of the panels.
        left: First column of the place.
        size: Side of the place in pixels.
    """
    font = ImageFont.load_default(size=13)
    canvas = Image.new("RGB", ((PANEL + 4) * (len(panels) + 1) - 4, PANEL + CAPTION), "white")
    draw = ImageDraw.Draw(canvas)

    whole = to_pil(panels[-1].image)
    factor = PANEL / max(whole.size)
    small = whole.resize([max(round(side * factor), 1) for side in whole.size], Image.Resampling.LANCZOS)
    box = [round(v * factor) for v in (left, top, left + size, top + size)]
    ImageDraw.Draw(small).rectangle(box, outline="red", width=2)
    canvas.paste(small, ((PANEL - small.width) // 2, (PANEL - small.height) // 2))

    for i, panel in enumerate(panels, start=1):
        place = to_pil(panel.image[:, top : top + size, left : left + size])
        canvas.paste(place.resize((PANEL, PANEL), Image.Resampling.NEAREST), (i * (PANEL + 4), 0))
        draw.text((i * (PANEL + 4) + PANEL // 2, PANEL + CAPTION // 2), panel.caption, "black", font, anchor="mm")
    return canvas


def to_pil(image: Tensor) -> Image.Image:
    """Convert (1 or 3, H, W) in [0, 1] to an RGB image of 8 bits; values outside are clamped."""
    levels = to_uint8(image.detach()).cpu()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def save_comparison(path: Path, lr: Tensor, images: dict[str, Tensor], hr: Tensor, size: int = 96) -> list[Image.Image]:
    """Write LR, each method and HR side by side, at the place where the first method differs most from HR.

    Args:
        path: PNG file.
        lr: (C, h, w) in [0, 1]; shown enlarged without smoothing.
        images: Caption -> (C, H, W).
        hr: (C, H, W).
        size: Side of the place in HR pixels, reduced to that of a smaller image.

    Returns:
        That place of LR, each method and HR, each `size` pixels wide and high.
    """
    size = min(size, *hr.shape[-2:])
    enlarged = F.interpolate(lr[None], size=hr.shape[-2:], mode="nearest")[0]
    panels = [Panel("LR", enlarged), *(Panel(k, v) for k, v in images.items()), Panel("HR", hr)]
    top, left = hardest_place(next(iter(images.values())), hr, size)
    write_image(path, side_by_side(panels, top, left, size))
    return [to_pil(panel.image[:, top : top + size, left : left + size]) for panel in panels]

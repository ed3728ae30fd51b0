"""Pictures of an evaluation: comparisons of one place, and all versions of an image for report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sr_lightning.color import to_uint8
from sr_lightning.evaluation.comparison import save_comparison
from sr_lightning.evaluation.report import Versions, save_versions
from sr_lightning.images.folder import short_name
from sr_lightning.inference import in_colour

if TYPE_CHECKING:
    from sr_lightning.evaluation.scoring import Sample


class EvaluationImages:
    """Writer of pictures of the first images of each data set.

    Args:
        run_dir: Comparisons go into its `pictures`, versions into its `report_files`.
        num_comparisons: Number of comparison pictures of each data set.
        num_reported: Number of images of each data set in report.html.

    Attributes:
        comparisons: The comparison pictures, PNG files.
        crops: The place that each comparison shows: dataset, scale and image; lr and hr, Pillow images; and models,
            name -> image. Bicubic and HR alone determine the place, so it is the same for every run.
        versions: The images in all versions.
    """

    def __init__(self, run_dir: str | Path, num_comparisons: int, num_reported: int) -> None:
        self.run_dir = Path(run_dir)
        self.num_comparisons, self.num_reported = num_comparisons, num_reported
        self.comparisons: list[Path] = []
        self.crops: list[dict[str, Any]] = []
        self.versions: list[Versions] = []
        self._seen: dict[tuple[str, int], int] = {}

    def forget(self, scale: int) -> None:
        """Start again with the images of a scale."""
        kept = [i for i, crop in enumerate(self.crops) if crop["scale"] != scale]
        self.comparisons, self.crops = [self.comparisons[i] for i in kept], [self.crops[i] for i in kept]
        self.versions = [version for version in self.versions if version.scale != scale]
        self._seen = {key: count for key, count in self._seen.items() if key[1] != scale}

    @torch.inference_mode()
    def add(
        self,
        dataset: str,
        scale: int,
        sample: "Sample",
        outputs: Mapping[str, Tensor],
        rows: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Write the pictures of one image, if it is among the first.

        Args:
            dataset: Name of the data set.
            scale: The factor.
            sample: The image.
            outputs: Model -> sr (1, 1 or 3, H, W). Comparisons show the place where the first differs most from HR.
            rows: Model -> row of scores.
        """
        number = self._seen.get((dataset, scale), 0)
        self._seen[dataset, scale] = number + 1
        if number >= max(self.num_comparisons, self.num_reported):
            return
        colour = {name: in_colour(sr, sample.lr, scale) for name, sr in outputs.items()}
        if number < self.num_comparisons:
            self._compare(dataset, scale, sample, colour, rows)
        if number < self.num_reported:
            levels = {name: to_uint8(sr[0]).cpu().numpy() for name, sr in colour.items()}
            lr, hr = (to_uint8(image[0]).cpu().numpy() for image in (sample.lr, sample.hr))
            place = (self.run_dir / "report_files", dataset, sample.name, scale)
            self.versions.append(save_versions(*place, lr, levels, hr, sample.protocol.border_for(scale)))

    def _compare(
        self,
        dataset: str,
        scale: int,
        sample: "Sample",
        colour: Mapping[str, Tensor],
        rows: Mapping[str, Mapping[str, Any]],
    ) -> None:
        psnr = f"psnr_{sample.protocol.channel}"
        captioned = {f"{name} {rows[name][psnr]:.2f} dB": sr[0] for name, sr in colour.items()}
        path = self.run_dir / "pictures" / f"{dataset}_x{scale}_{short_name(sample.name)}.png"
        low, *crops, high = save_comparison(path, sample.lr[0], captioned, sample.hr[0])
        self.comparisons.append(path)
        place = {"dataset": dataset, "scale": scale, "image": sample.name, "lr": low, "hr": high}
        self.crops.append(place | {"models": dict(zip(colour, crops, strict=True))})

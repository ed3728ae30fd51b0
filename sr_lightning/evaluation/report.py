"""report.html: the scores of an evaluation and the images behind them, in one page that needs no server.

Two steps, so that one image is in memory at a time: `save_versions` writes the pictures of one image and finds where
models gain and lose most; `write_report` writes the page from the scores and the results of those calls.
"""

import base64
import hashlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sr_lightning.configs import command
from sr_lightning.errors import InputError
from sr_lightning.evaluation.crops import BASELINE, Crop, find_crops
from sr_lightning.evaluation.score_table import NOT_SCORES
from sr_lightning.metrics.protocol import Protocol
from sr_lightning.runs.folder import RunFolder
from sr_lightning.utils.atomic_files import replacing, write_text
from sr_lightning.utils.page import fill_page, plain_value, relative_url

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
EMBEDDED = 16_000_000  # bytes of pictures up to which the page embeds them and is a single file
MAX_NAMED = 3  # models in the title
_WEBP_SIDE = 16383  # WebP's largest side in pixels


@dataclass(frozen=True)
class Versions:
    """One image in all its versions, on disk.

    Attributes:
        dataset: As in the rows of scores.
        image: As in the rows of scores.
        scale: As in the rows of scores.
        size: (H, W) of HR.
        lr: Picture file.
        models: Name -> picture file.
        hr: Picture file.
        crops: Places where each model gains and loses most.
    """

    dataset: str
    image: str
    scale: int
    size: tuple[int, int]
    lr: Path
    models: dict[str, Path]
    hr: Path
    crops: tuple[Crop, ...]

    @property
    def files(self) -> list[Path]:
        return [self.lr, *self.models.values(), self.hr]


def save_versions(
    folder: Path,
    dataset: str,
    image: str,
    scale: int,
    lr: np.ndarray,
    models: Mapping[str, np.ndarray],
    hr: np.ndarray,
    border: int = 0,
) -> Versions:
    """Write all versions of one image losslessly, and find where each model gains and loses most against bicubic.

    Args:
        folder: Beside the page; gets a subfolder for this image.
        dataset: Name of the data set.
        image: Name of the image.
        scale: The factor.
        lr: uint8 (1 or 3, h, w).
        models: Name -> uint8 (1 or 3, h*scale, w*scale); without "bicubic" no places are found.
        hr: uint8 (1 or 3, h*scale, w*scale).
        border: HR pixels on each side that are not scored, and not searched for places.

    Raises:
        InputError: Sizes differ from that of HR; the message names all.
    """
    height, width = hr.shape[-2:]
    shapes = {"LR enlarged": tuple(scale * side for side in lr.shape[-2:])} | {
        n: m.shape[-2:] for n, m in models.items()
    }
    if wrong := [f"{name} {h}x{w}" for name, (h, w) in shapes.items() if (h, w) != (height, width)]:
        raise InputError(f"{dataset} x{scale} {image}: HR is {height}x{width}, but {', '.join(wrong)}")
    place = Path(folder, f"{_file_name(dataset)}_x{scale}", _file_name(image))
    suffix = ".webp" if max(height, width) <= _WEBP_SIDE else ".png"
    pictures = {place / f"LR{suffix}": lr, place / f"HR{suffix}": hr}
    files = {name: place / f"model_{_file_name(name)}{suffix}" for name in models}
    pictures |= {files[name]: picture for name, picture in models.items()}
    with ThreadPoolExecutor() as pool:  # encoders release Python's global lock
        list(pool.map(_write_lossless, pictures, pictures.values()))
    crops = find_crops(models, hr, border)
    return Versions(dataset, image, scale, (height, width), place / f"LR{suffix}", files, place / f"HR{suffix}", crops)


def _file_name(name: str) -> str:
    """Return a name that is safe in file systems and URLs; different names get different results."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:48]
    return plain if plain == name != "" else f"{plain}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _write_lossless(path: Path, picture: np.ndarray) -> None:
    """Write (1 or 3, H, W) uint8 to a file. WebP is smaller than PNG, and takes a quarter of the time."""
    image = Image.fromarray(picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0)))
    with replacing(path) as temporary:
        if path.suffix == ".webp":
            image.save(temporary, format="WEBP", lossless=True, method=0, quality=0)
        else:
            image.save(temporary, format="PNG")


def write_report(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    versions: Sequence[Versions] = (),
    *,
    leaderboard: Sequence[Mapping[str, Any]] | None = None,
    facts: Mapping[str, str] | None = None,
    subjects: Sequence[Mapping[str, Any]] = (),
    commands: Sequence[str] = (),
    embedded: int = EMBEDDED,
) -> int:
    """Write the page: leaderboard, viewer, places of largest gain and loss, scores per image, provenance.

    The page loads nothing from outside. Few pictures are embedded, and their files are removed; many stay on disk and
    are loaded when they are shown.

    Args:
        path: The page, such as RUN/report.html; beside the folder of the pictures.
        rows: Scores per model and image, and averages as image "mean": model, scale, dataset, image, protocol, and any
            scores. Gains are over bicubic's rows, if there are any.
        versions: Pictures of all or some of the images.
        leaderboard: The table at the top, column -> value; None: the averages of `rows`.
        facts: Further facts on how the scores were made, name -> text.
        subjects: The networks, as `sr_lightning.evaluation.subjects.subject` describes them; shown in the head.
        commands: The commands that made the page.
        embedded: Bytes of pictures up to which they are embedded.

    Returns:
        Bytes of the page and its pictures together.

    Raises:
        InputError: No rows, or rows without the required columns.
    """
    if not rows:
        raise InputError(f"{path}: there are no scores to report")
    if missing := sorted({key for row in rows for key in NOT_SCORES if key not in row}):
        raise InputError(f"{path}: rows of scores must have {', '.join(NOT_SCORES)}; missing: {', '.join(missing)}")
    path = Path(path)
    files = [file for image in versions for file in image.files]
    picture_bytes = sum(file.stat().st_size for file in files)
    inside = picture_bytes <= embedded
    data = {
        "baseline": BASELINE,
        "sets": _sets(rows, versions, lambda file: _data_url(file) if inside else relative_url(file, path.parent)),
        "leaderboard": [_plain(row) for row in leaderboard] if leaderboard else None,
        "protocols": sorted({row["protocol"] for row in rows}),
        "facts": dict(facts or {}),
        "subjects": [
            {"model": s["model"], "facts": dict(s["facts"]), "curve": [[x, plain_value(y)] for x, y in s["curve"]]}
            for s in subjects
        ],
        "commands": list(commands),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "pictures": {"count": len(files), "bytes": picture_bytes, "inside": inside},
    }
    text = fill_page(TEMPLATE, _title(data["sets"]), data)
    write_text(path, text)
    if inside:
        _remove(files)
    page = path.stat().st_size
    where = "all in one file" if inside else f"beside {len(files)} pictures of {_megabytes(picture_bytes)}"
    log.info("%s: %s, %s", path, _megabytes(page), where)
    return page if inside else page + picture_bytes


def write_evaluation_report(
    run_dir: Path,
    rows: Sequence[Mapping[str, Any]],
    versions: Sequence[Versions],
    protocol: Protocol,
    *,
    leaderboard: Sequence[Mapping[str, Any]] | None = None,
    facts: Mapping[str, str] | None = None,
    subjects: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write run_dir/report.html with protocol, device and command, unless `versions` is empty; see `write_report`."""
    if not versions:
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = dict(facts or {}) | {
        "protocol in words": protocol.description,
        "computed on": f"{device}, PyTorch {torch.__version__}",
    }
    words = f"{command(sys.argv[0])} {shlex.join(sys.argv[1:])}"
    path = RunFolder(run_dir).report
    write_report(path, rows, versions, leaderboard=leaderboard, facts=facts, subjects=subjects, commands=[words])


def _sets(rows: Sequence[Mapping[str, Any]], versions: Sequence[Versions], url: Any) -> list[dict[str, Any]]:
    """Build one entry per data set and scale, in the order of the rows; lists, not dictionaries, keep it small."""
    shown = {(v.dataset, v.scale, v.image): v for v in versions}
    sets: dict[tuple[str, int], dict[str, dict[str, Mapping[str, Any]]]] = {}  # -> image -> model -> row
    for row in rows:
        images = sets.setdefault((row["dataset"], row["scale"]), {})
        images.setdefault(row["image"], {})[row["model"]] = row
    result = []
    for (dataset, scale), images in sets.items():
        of_set = [row for by_model in images.values() for row in by_model.values()]
        models = list(dict.fromkeys(row["model"] for row in of_set))
        scores = [key for key in dict.fromkeys(key for row in of_set for key in row) if key not in NOT_SCORES]
        entries = []
        for name, by_model in images.items():
            values = [[plain_value(by_model.get(m, {}).get(key)) for key in scores] for m in models]
            entry: dict[str, Any] = {"name": name, "scores": values}
            if (v := shown.get((dataset, scale, name))) is not None:
                entry["size"] = v.size
                entry["files"] = [url(v.lr), *(url(v.models[m]) if m in v.models else None for m in models), url(v.hr)]
                entry["crops"] = [
                    [models.index(c.model), c.top, c.left, c.size, *map(plain_value, (c.gain, c.psnr, c.bicubic))]
                    for c in v.crops
                    if c.model in models
                ]
            entries.append(entry)
        mean = next((entry["scores"] for entry in entries if entry["name"] == "mean"), None)
        entries = [entry for entry in entries if entry["name"] != "mean"]
        entry_of_set = {"dataset": dataset, "scale": scale, "models": models, "scores": scores, "mean": mean}
        protocol = ", ".join(sorted({row["protocol"] for row in of_set}))
        result.append(entry_of_set | {"protocol": protocol, "images": entries})
    return result


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): plain_value(value) for key, value in row.items()}


def _data_url(file: Path) -> str:
    return f"data:image/{file.suffix[1:]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _title(sets: Sequence[Mapping[str, Any]]) -> str:
    names = ", ".join(f"{s['dataset']} ×{s['scale']}" for s in sets)
    models = list(dict.fromkeys(model for s in sets for model in s["models"] if model != BASELINE)) or [BASELINE]
    return f"{', '.join(models) if len(models) <= MAX_NAMED else f'{len(models)} models'}: {names}"


def _remove(files: Sequence[Path]) -> None:
    """Delete files, and the folders of the image, the set and all pictures if they are empty then."""
    for file in files:
        file.unlink(missing_ok=True)
    for folder in sorted({parent for file in files for parent in list(file.parents)[:3]}, key=lambda p: -len(p.parts)):
        if not any(folder.iterdir()):
            folder.rmdir()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"

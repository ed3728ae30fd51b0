"""DIV2K: 800 training and 100 validation photos of 2K resolution, with LR of several degradations.

Agustsson and Timofte, NTIRE 2017 (https://data.vision.ee.ethz.ch/cvl/DIV2K/); mild, difficult, wild and x8: NTIRE 2018.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sr_lightning.data.sources import Pair, UnpairedError
from sr_lightning.errors import InputError
from sr_lightning.utils.download import download as fetch
from sr_lightning.utils.download import extract

URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
NUMBERS = {"train": range(1, 801), "valid": range(801, 901)}
SCALES = {"bicubic": (2, 3, 4, 8), "unknown": (2, 3, 4), "mild": (4,), "difficult": (4,), "wild": (4,)}
# Letter after the scale in a file name. Wild has four LR images for each training photo, w1 ... w4.
TRACK_LETTERS = {"bicubic": "", "unknown": "", "mild": "m", "difficult": "d", "wild": "w"}
SHOWN = 10  # missing files named in a message

# Archive: bytes, SHA-256 (as listed in TensorFlow Datasets).
ARCHIVES = {
    "DIV2K_train_HR": (3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
    "DIV2K_train_LR_bicubic_X2": (925390592, "a53a424317575838dadce4bcd97cf7b744d6855f43740ed5f0245af3cf4bd850"),
    "DIV2K_train_LR_bicubic_X3": (427847282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a"),
    "DIV2K_train_LR_bicubic_X4": (246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
    "DIV2K_train_LR_difficult": (263211252, "50624a649a0857fdb8e4a948e79c44c37dedbacb5729f9349cc983c47bfdf799"),
    "DIV2K_train_LR_mild": (275693358, "ce5fbe6252d1000c55656b0666dccdeaf8e66b86ae5ff528c49343012e8e1391"),
    "DIV2K_train_LR_unknown_X2": (734182735, "f166eeba119fc55bfc9a99c05561980e7a965382f36640ce8ef626c9f61d122c"),
    "DIV2K_train_LR_unknown_X3": (377245548, "b6455af3b2aa02d76ae3238c49d7aae3b48b0acdc44b5bdc0f4c02d40ebcb43b"),
    "DIV2K_train_LR_unknown_X4": (208956781, "d131c7aad51e0abbdc4433362ce899e5e75f40b9847ead70ee995188e8fd0adb"),
    "DIV2K_train_LR_wild": (1079873385, "ce68f7db812d12241212bb9d6b07406472bef3d785c463238888b44189c5ceb3"),
    "DIV2K_train_LR_x8": (65753171, "706fa23164fa0756a3accb78e69b937ea47f882b47e13506895deefd623a35c2"),
    "DIV2K_valid_HR": (448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
    "DIV2K_valid_LR_bicubic_X2": (117763600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"),
    "DIV2K_valid_LR_bicubic_X3": (54513392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"),
    "DIV2K_valid_LR_bicubic_X4": (31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
    "DIV2K_valid_LR_difficult": (33596835, "08b4e740496b50846497463121329c707dd8ed26eb8a655d175e9a595286d5e8"),
    "DIV2K_valid_LR_mild": (35300939, "eedfbcb6acc6662a3f52924aaa5a423693244f3276d37c3fca7944c7325859ff"),
    "DIV2K_valid_LR_unknown_X2": (93433041, "ec50bb084c0011130874efd2ed7859b46e0aa7104c565818d5271ac315e04e0a"),
    "DIV2K_valid_LR_unknown_X3": (48143315, "ebf23a3e1ef6800cae97285d3a50d022d89b62655e685884c0abcc89eec5b809"),
    "DIV2K_valid_LR_unknown_X4": (26695095, "e3897555a98de1157c20974fb6093105fbc1ff5e9caf7bd348f58f6da140fbef"),
    "DIV2K_valid_LR_wild": (34655417, "ce921d2048eef3e1fd9ba359d1876b1c93e33bd7a531306f7782672391df9820"),
    "DIV2K_valid_LR_x8": (8428103, "3432f23da7c6887acc5e2cde9669427a7710b3b256c58912dddc19e3eda5bc69"),
}


@dataclass(frozen=True)
class Part:
    """Contents of one archive.

    Attributes:
        archive: File name without `.zip`.
        folder: Folder below the root into which it is unpacked.
        search: Folders below the root that may contain its images, at any depth.
        tail: Part of a file name between the number and `.png`.
    """

    archive: str
    folder: str
    search: tuple[str, ...]
    tail: str

    @property
    def zip(self) -> str:
        return f"{self.archive}.zip"

    def file(self, number: int) -> str:
        return f"{number:04d}{self.tail}.png"

    def find(self, root: Path) -> dict[int, list[Path]]:
        """Find image number -> files, sorted by name; of two files of one name the less deep one."""
        pattern = re.compile(rf"(\d{{4}}){self.tail}{'[0-9]?' if self.tail.endswith('w') else ''}\.png")
        found = defaultdict(dict)
        for top in self.search:
            for folder, inner, files in os.walk(root / top, followlinks=True):
                inner[:] = sorted(name for name in inner if not name.startswith("."))  # hidden: being unpacked
                for file in files:
                    if match := pattern.fullmatch(file):
                        found[int(match[1])].setdefault(file, Path(folder, file))
        return {number: [files[name] for name in sorted(files)] for number, files in found.items()}


def parts(split: str, track: str | None, scale: int | None) -> list[Part]:
    """List the parts of a split: HR, and LR if a track is given."""
    hr = f"DIV2K_{split}_HR"
    result = [Part(archive=hr, folder=hr, search=(hr,), tail="")]
    if track is not None:
        tail = f"x{scale}{TRACK_LETTERS[track]}"
        if track not in ("bicubic", "unknown"):
            lr = f"DIV2K_{split}_LR_{track}"
            result.append(Part(archive=lr, folder=lr, search=(lr,), tail=tail))
        elif scale == 8:
            lr = f"DIV2K_{split}_LR_x8"
            result.append(Part(archive=lr, folder=lr, search=(lr, f"DIV2K_{split}_LR_bicubic"), tail=tail))
        else:
            lr = f"DIV2K_{split}_LR_{track}"
            name = f"{lr}_X{scale}"
            result.append(Part(archive=name, folder=f"{lr}/X{scale}", search=(lr, name), tail=tail))
    return result


def div2k(
    root: str | Path,
    split: str = "train",
    track: str | None = "bicubic",
    scale: int | None = None,
    download: bool = False,
    first: int | None = None,
    last: int | None = None,
    base_url: str = URL,
) -> list[Pair]:
    """List the pairs of one split, in the order of their numbers.

    Images are found at any depth below the official folders (`DIV2K_train_HR`, `DIV2K_train_LR_bicubic`, ...). The
    wild track has one pair per LR image, four per training photo, named after the LR file.

    Args:
        root: Folder that contains the DIV2K_... folders.
        split: "train" (1 to 800) or "valid" (801 to 900).
        track: "bicubic" (x2, x3, x4, x8), "unknown" (x2, x3, x4), "mild", "difficult", "wild" (x4 each); None for HR
            only.
        scale: The factor; ignored without a track.
        download: Fetch archives of which no image exists; an archive in `root` is unpacked in any case.
        first: Smallest image number.
        last: Largest image number, included.
        base_url: Address of the archives.

    Raises:
        InputError: An invalid choice, missing files, or a failed download.
    """
    root = Path(root).expanduser()
    numbers = _choose(split, track, scale, first, last)
    wanted = parts(split, track, scale)
    found = {part: part.find(root) for part in wanted}
    absent = [part for part in wanted if not any(number in found[part] for number in numbers)]
    to_fetch = [part for part in absent if not (root / part.zip).exists()]
    if to_fetch and not download:
        raise InputError(_download_advice(root, to_fetch, numbers, base_url))
    for part in absent:
        size, sha256 = ARCHIVES[part.archive]
        extract(fetch(f"{base_url.rstrip('/')}/{part.zip}", root / part.zip, sha256, size=size), root / part.folder)
        found[part] = part.find(root)

    problems, complete = [], list(numbers)
    for part in wanted:
        count = max(map(len, found[part].values()), default=1)  # wild has several
        lacking = [number for number in numbers if len(found[part].get(number, ())) < count]
        complete = [number for number in complete if number not in lacking]
        if lacking:
            missing = [part.file(number) for number in lacking]
            names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
            where = " or ".join(str(root / top) for top in part.search)
            problems.append(f"\n  {len(missing)} of {len(numbers)} below {where}: {names}")
    pairs = []
    for number in complete:
        hr = found[wanted[0]][number][0]
        lrs: Sequence[Path | None] = found[wanted[1]][number] if track is not None else [None]
        pairs += [Pair(hr.stem if len(lrs) == 1 else lr.stem, hr, lr) for lr in lrs]
    if problems:
        message = (
            f"DIV2K {split} is incomplete:{''.join(problems)}\n"
            "Put the files there, or move the folder away and set data.train.download=true, or select others with "
            "first and last."
        )
        raise UnpairedError(message, pairs)
    return pairs


def _choose(split: str, track: str | None, scale: int | None, first: int | None, last: int | None) -> range:
    """Check all choices and return the image numbers."""
    wrong = []
    if split not in NUMBERS:
        wrong.append(f"split={split}: choose {' or '.join(NUMBERS)}")
    if track is not None and track not in SCALES:
        wrong.append(f"track={track}: choose {', '.join(SCALES)}, or null for HR only")
    elif track is not None and scale not in SCALES[track]:
        exists = "; ".join(f"{name} {', '.join(f'x{s}' for s in scales)}" for name, scales in SCALES.items())
        wrong.append(f"scale={scale}: there is no {track} x{scale}; available: {exists}")
    if split in NUMBERS:
        whole = NUMBERS[split]
        first, last = whole[0] if first is None else first, whole[-1] if last is None else last
        if not (type(first) is type(last) is int and whole[0] <= first <= last <= whole[-1]):
            wrong.append(f"first={first}, last={last}: {split} has the images {whole[0]} to {whole[-1]}")
    if wrong:
        raise InputError("DIV2K: " + "; ".join(wrong))
    return range(first, last + 1)


def _download_advice(root: Path, absent: Sequence[Part], numbers: range, base_url: str) -> str:
    gigabytes = sum(ARCHIVES[part.archive][0] for part in absent) / 1e9
    way_out = f"set data.train.download=true (fetches {gigabytes:.1f} GB; for data=df2k data.train.div2k.download)"
    lines = [f"DIV2K images are missing. Either {way_out}, or provide:"]
    for part in absent:
        lines.append(f"  {root / part.folder / part.file(numbers[0])} and the others,")
        lines.append(f"    or the archive {root / part.zip}, from {base_url.rstrip('/')}/{part.zip}")
    return "\n".join(lines)

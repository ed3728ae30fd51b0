"""List and fetch public data sets: python -m sr_lightning.data list, python -m sr_lightning.data fetch t91 set5."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sr_lightning.data.celeba import celeba
from sr_lightning.data.div2k import NUMBERS, SCALES, div2k, parts
from sr_lightning.data.lsdir import NUM_IMAGES, find_images, lsdir
from sr_lightning.data.public_sets import PUBLIC_SETS, fetch
from sr_lightning.data.sources import PHOTOS, Pair, bundled_photos
from sr_lightning.errors import InputError, raise_all
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.messages import printable

DESCRIPTION = """List public data sets and what of them is in place, or download and verify some. Complete sets are left
alone; an interrupted download is continued."""
EXAMPLE = """example:
  python -m sr_lightning.data list
  python -m sr_lightning.data fetch t91 bsds500 set5
  python -m sr_lightning.data fetch div2k --scale 2 4 --root /data/sr"""
NAMES = (*PUBLIC_SETS, "div2k", "lsdir", "celeba")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0; 1 after an error; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    root = options.root.expanduser()
    if options.action == "list":
        return run_command(lambda: print(printable(table(root)), flush=True))
    return run_command(lambda: fetch_sets(options.sets, root, options.track, options.scale))


def fetch_sets(names: Sequence[str], root: Path, track: str = "bicubic", scales: Sequence[int] = (2, 3, 4)) -> None:
    """Fetch data sets and print the place of each.

    Args:
        names: Elements of NAMES.
        root: The data root.
        track: DIV2K's degradation.
        scales: DIV2K's factors; those that its track lacks are left out.

    Raises:
        InputError: A set that cannot be fetched, after all others have been.
    """
    raise_all(*(lambda name=name: _fetch_one(name, root, track, scales) for name in dict.fromkeys(names)))


def table(root: Path) -> str:
    """Format what there is, the setting that uses it, its place below `root`, and how many of its images are there."""
    rows = [["set", "use", "place", "images"], *_rows(root)]
    return f"Data root: {root} (SR_DATA_ROOT, or --root)\n\n{markdown_table(rows)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.data",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch")
    show = actions.add_parser("list", help="what there is, its place, and what of it is there")
    get = actions.add_parser("fetch", help="download, verify and put in place")
    get.add_argument("sets", nargs="+", choices=NAMES, metavar="SET", help=", ".join(NAMES))
    get.add_argument("--scale", nargs="+", type=int, default=[2, 3, 4], metavar="S", help="DIV2K: factors (2 3 4)")
    get.add_argument("--track", choices=SCALES, default="bicubic", help="DIV2K: degradation (bicubic)")
    root = os.environ.get("SR_DATA_ROOT") or "data"
    for each in (show, get):
        each.add_argument("--root", type=Path, default=root, help=f"data root (SR_DATA_ROOT, now {root})")
    return parser


def _fetch_one(name: str, root: Path, track: str, scales: Sequence[int]) -> None:
    """Fetch one set and print its place."""
    if name == "div2k":
        for scale in [scale for scale in scales if scale in SCALES[track]] or scales:
            for split in NUMBERS:
                div2k(root, split, track, scale, download=True)
        print(f"div2k: complete below {root}")
    elif name == "lsdir":
        lsdir(root / "LSDIR")  # its error says how to get it
        print(f"lsdir: complete in {root / 'LSDIR'}")
    elif name == "celeba":
        celeba(root / "CelebA", "valid")  # its error says how to get it
        print(f"celeba: complete in {root / 'CelebA'}")
    else:
        wanted = PUBLIC_SETS[name]
        new = fetch([wanted], root)
        places = ", ".join(f"{root / folder.place} ({folder.num_images} images)" for folder in wanted.folders)
        print(f"{name}: {places}{'' if new else ' was there already'}")
        for folder in new:
            if all(folder != root / each.place for each in wanted.folders):
                print(f"  of the same archive: {folder}")


def _rows(root: Path) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    for each in PUBLIC_SETS.values():
        for i, folder in enumerate(each.folders):
            first = (each.name, each.use) if i == 0 else ("", "")
            yield [*first, folder.place, _state(folder.count(root), folder.num_images)]
    for split, numbers in NUMBERS.items():
        for part in (parts(split, None, None)[0], *(parts(split, "bicubic", scale)[1] for scale in (2, 3, 4))):
            first = ("div2k", "data=div2k") if part.archive == "DIV2K_train_HR" else ("", "")
            yield [*first, part.folder, _state(len(part.find(root).keys() & set(numbers)), len(numbers))]
    for split, count in NUM_IMAGES.items():
        first = ("lsdir", "data=lsdir") if split == "train" else ("", "")
        found = len(find_images(root / "LSDIR", split))
        yield [*first, f"LSDIR ({split})", _state(found, count) if found else "by hand"]
    yield ["celeba", "data=celeba", "CelebA", _listed(lambda: celeba(root / "CelebA", "valid"), "by hand")]
    yield ["", "data=demo", "(in scikit-image)", _listed(lambda: bundled_photos(PHOTOS), "missing")]


def _listed(list_images: Callable[[], list[Pair]], otherwise: str) -> str:
    """Count the images of a set that is complete or not usable at all."""
    try:
        return f"all {len(list_images()):,}"
    except InputError:
        return otherwise


def _state(found: int, num_images: int) -> str:
    """Describe how many images of a folder are there."""
    if not found:
        return f"missing ({num_images})"
    return f"all {num_images}" if found >= num_images else f"{found} of {num_images}"


if __name__ == "__main__":
    sys.exit(main())

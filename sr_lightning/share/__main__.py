"""Share a trained network: python -m sr_lightning.share RUN --to FOLDER|hf:USER/NAME --licence NAME."""

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sr_lightning.errors import InputError, require_training_packages
from sr_lightning.pretrained.hub import PREFIX
from sr_lightning.runs.folder import RunFolder
from sr_lightning.share.destination import check_folder, check_repository, put_folder, upload
from sr_lightning.utils.commands import run_command
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.messages import escape_messages

DESCRIPTION = """Write the best network of a finished run for others: weights, config.yaml, scores.csv, metrics.csv,
three pictures, README.md as a Hugging Face model card, and manifest.json with the sha256 of all. Paths and names of
this machine, and images of your own folders, are left out (docs/weights.md)."""
EXAMPLE = """example:
  python -m sr_lightning.share outputs/RUN --to espcn_x2 --licence mit
  python -m sr_lightning.share outputs/RUN --to hf:USER/NAME --licence cc-by-nc-4.0"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code of `run_command`.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    escape_messages()
    return run_command(
        lambda: print(share(options.run, options.to, options.licence, overwrite=options.overwrite)),
        "; nothing was written" if not options.to.startswith("hf:") else "",
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sr_lightning.share",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--to", required=True, metavar="FOLDER|hf:USER/NAME", help="folder, or repository of the hub HF_ENDPOINT"
    )
    parser.add_argument(
        "--licence", required=True, metavar="NAME", help="of the weights, such as mit or cc-by-nc-4.0; you choose it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what this command wrote there before")
    return parser


def share(run: str | Path, to: str, licence: str, *, overwrite: bool = False) -> str:
    """Write or upload the best network of a run, completely or not at all.

    Args:
        run: Directory of a finished run.
        to: A folder, or `hf:USER/NAME`.
        licence: Of the weights.
        overwrite: Replace what was shared there before.

    Returns:
        One line on what was written, and the command that uses it.

    Raises:
        InputError: The run has not ended or is damaged, the licence has no name, or the place cannot be written to.
    """
    licence = licence.strip()
    if not re.fullmatch(r"[\w.+-]+", licence, re.ASCII):
        raise InputError(f"--licence {licence}: give the name of a licence, such as mit or cc-by-nc-4.0")
    is_hub, place, source = to.startswith(PREFIX), Path(to).expanduser(), RunFolder(Path(run).expanduser())
    check_repository(to) if is_hub else check_folder(place, overwrite=overwrite)
    require_training_packages(__name__)
    from sr_lightning.runs.result import finished_result

    finished_result(source)  # before torch is imported
    with large_imports():
        from sr_lightning.share.files import facts_of, write_files

    facts = facts_of(source, licence, to if is_hub else place.absolute().name)
    with tempfile.TemporaryDirectory(prefix="sr_lightning_") as folder:
        names = write_files(facts, Path(folder))
        done = upload(Path(folder), to, overwrite=overwrite) if is_hub else put_folder(Path(folder), place)
    missing = "" if facts.pictures else ". It has no pictures: the run has none of a public test set"
    return f"{done}: {', '.join(names)}{missing}"


if __name__ == "__main__":
    sys.exit(main())

"""Costs of every network in conf/model, and weights by name: sr-models --scale 2, or python -m sr_lightning.models."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sr_lightning.configs import CONF
from sr_lightning.errors import require_training_packages
from sr_lightning.pretrained import card_of, included
from sr_lightning.pretrained.published import PUBLISHED
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.large_imports import large_imports
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.messages import show

EXAMPLE = """example:
  sr-models --scale 4             parameters, multiply-adds, receptive field
  sr-models --scale 4 --measure   also time and memory on this machine
  sr-models edsr_fast espcn --lr 256x256 --measure
  sr-models --weights             networks that come with the package, and published ones
  sr-models --weights luma_x2     how it was trained, scores, licence, limits"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "sr-models",
        description="Parameters, multiply-adds and receptive field of networks; with --weights, trained ones.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="network in conf/model, or recipe in conf/experiment; with --weights the name of weights (default: all)",
    )
    parser.add_argument(
        "--weights", action="store_true", help="list weights that can be used by their name, or describe"
    )
    parser.add_argument("--scale", type=int, choices=scales(), default=2, help="upscaling factor (default: 2)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also measure time and peak memory on this machine; with OMP_NUM_THREADS=1 processor time",
    )
    parser.add_argument(
        "--budget", type=float, default=5, metavar="SECONDS", help="measure only networks within this time (default: 5)"
    )
    parser.add_argument(
        "--lr", metavar="WxH", help="size of the LR image (default: the smallest whose output is at least 1280x720)"
    )
    options = parser.parse_args(arguments)
    if options.weights:
        if unknown := [name for name in options.names if name not in included() and name not in PUBLISHED]:
            parser.error(f"there are no weights named {', '.join(unknown)}; sr-models --weights lists all")
        show("\n\n".join(map(describe_weights, options.names)) or list_weights())
        return
    if unknown := [name for name in options.names if name not in (*names_in("model"), *names_in("experiment"))]:
        parser.error(f"no file in conf/model or conf/experiment is named {', '.join(unknown)}")
    if options.lr and not (size := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", options.lr, re.ASCII)):
        parser.error(f"--lr {options.lr}: give width and height in pixels, such as 256x256")
    lr = (int(size[2]), int(size[1])) if options.lr else None
    require_training_packages("__main__")
    bound_spinning()
    show(report(options.scale, options.budget if options.measure else None, options.names, lr))


def list_weights() -> str:
    """Format all weights that have a name as a Markdown table: those that come with the package, and published ones."""
    lines = [["name", "network", "scale", "Set5", "BSD100", "kB", "licence", "from", "sha256 stated by"]]
    for name, path in included().items():
        card = card_of(path)
        network, _, purpose = card["title"].partition(", ")
        network, _, scale = network.rpartition(" ")
        psnr = [f"{card['scores'][dataset]['psnr']:.2f}" for dataset in ("Set5", "BSD100")]
        size = f"{path.stat().st_size / 1e3:.0f}"
        lines.append([name, f"{network}, {purpose}", scale, *psnr, size, card["licence"], "this package", ""])
    for name, entry in PUBLISHED.items():
        facts = [entry.licence, entry.host, entry.stated_by]
        lines.append([name, entry.network, f"x{entry.scale}", "", "", "", *facts])
    use = "PSNR on luma in dB. Use: sr-upscale photo.jpg -c NAME; published ones are downloaded once."
    return f"{markdown_table(lines)}\n{use}"


def describe_weights(name: str) -> str:
    """Format the card of weights that come with the package, or the facts on published ones."""
    if name in PUBLISHED:
        entry = PUBLISHED[name]
        facts = {"network": f"{entry.network}, x{entry.scale}", "address": entry.url, "licence": entry.licence}
        return card_text(name, facts | {"sha256": f"{entry.sha256}, stated by {entry.stated_by}"})
    card = card_of(included()[name])
    scores = [
        f"{dataset} {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, bicubic {row['bicubic']:.2f} dB"
        for dataset, row in card["scores"].items()
    ]
    return card_text(name, card | {"scores": "; ".join(scores)})


def card_text(name: str, facts: Mapping[str, str]) -> str:
    """Format facts as a Markdown list below a name."""
    return "\n".join([f"# {name}", "", *(f"- {key}: {value}" for key, value in facts.items())])


def scales() -> list[int]:
    """Return the factors in conf/scale."""
    return sorted(int(path.stem.removeprefix("x")) for path in (CONF / "scale").glob("x*.yaml"))


def names_in(group: str) -> list[str]:
    """Return the names of the files in a folder of conf, without `base`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


def report(
    scale: int, budget: float | None = None, names: Sequence[str] = (), lr: tuple[int, int] | None = None
) -> str:
    """Format the costs of networks as a Markdown table, fewest multiply-adds first.

    Args:
        scale: The factor.
        budget: Seconds per image: networks that need no more are also measured. None: measure none.
        names: As for `networks`.
        lr: Height and width of the LR image; None: the smallest whose output is at least 1280x720.
    """
    with large_imports():
        from sr_lightning.network_costs import count, lr_size, machine, measure_in_subprocess

    height, width = lr or lr_size(scale)
    descriptions = networks(scale, names)
    found = {name: (description, count(description, height, width)) for name, description in descriptions.items()}
    lines = [["network", "parameters", "multiply-adds", "receptive field"]]
    if budget is not None:
        lines[0] += ["ms", "MiB", "precision"]
    for name, (description, counts) in sorted(found.items(), key=lambda item: item[1][1].multiply_adds):
        side = counts.receptive_field
        field = "whole image" if side is None else f"{side}x{side}"
        giga = counts.multiply_adds / 1e9
        lines.append([name, f"{counts.parameters:,}", f"{giga:.{2 if giga < 1 else 1}f} G", field])
        if budget is not None:
            print(f"measuring {name}", file=sys.stderr)
            cost = measure_in_subprocess(description, height, width, budget)
            measured = None if cost is None else [f"{cost.milliseconds:.0f}", f"{cost.mebibytes:.0f}", cost.precision]
            lines[-1] += measured or ["over budget", "", ""]
    text = f"x{scale}, output {width * scale}x{height * scale}, receptive field in LR pixels\n{markdown_table(lines)}"
    return text if budget is None else f"{text}\nmeasured on {machine()}; budget {budget:g} s per image"


def networks(scale: int, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the `network` part of configs by file name.

    Args:
        scale: The factor.
        names: Files in conf/model or conf/experiment; none: all in conf/model.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    models = [name for name in names_in("model") if not names or name in names]
    recipes = [name for name in names if name not in models]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=[f"+scale=x{scale}", *(f"+model@models.{name}={name}" for name in models)])
        found = {name: cfg.models[name].network for name in models}
        for name in recipes:
            found[name] = compose("train", [f"experiment={name}", f"scale=x{scale}"]).model.network
    return {name: OmegaConf.to_container(network, resolve=True) for name, network in found.items()}


if __name__ == "__main__":
    main()

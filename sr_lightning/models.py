"""Costs of every network in conf/model: sr-models --scale 2, or python -m sr_lightning.models."""

import argparse
import sys
from typing import Any

from sr_lightning.configs import CONF
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.markdown import markdown_table

EXAMPLE = """example:
  sr-models --scale 4             parameters, multiply-adds, receptive field
  sr-models --scale 4 --measure   also time and memory on this machine"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "sr-models",
        description="Parameters, multiply-adds and receptive field of every network in conf/model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", type=int, choices=scales(), default=2, help="upscaling factor (default: 2)")
    parser.add_argument("--measure", action="store_true", help="also measure time and peak memory on this machine")
    parser.add_argument(
        "--budget", type=float, default=5, metavar="SECONDS", help="measure only networks within this time (default: 5)"
    )
    options = parser.parse_args(arguments)
    bound_spinning()
    print(report(options.scale, options.budget if options.measure else None))


def scales() -> list[int]:
    """Return the factors in conf/scale."""
    return sorted(int(path.stem.removeprefix("x")) for path in (CONF / "scale").glob("x*.yaml"))


def report(scale: int, budget: float | None = None) -> str:
    """Format the costs of all networks as a Markdown table, fewest multiply-adds first.

    Args:
        scale: The factor.
        budget: Seconds per image: networks that need no more are also measured. None: measure none.
    """
    from sr_lightning.network_costs import count, lr_size, machine, measure_in_subprocess

    height, width = lr_size(scale)
    found = {name: (description, count(description, height, width)) for name, description in networks(scale).items()}
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


def networks(scale: int) -> dict[str, dict[str, Any]]:
    """Return the `network` part of all configs in conf/model, by file name."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    names = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=[f"+scale=x{scale}", *(f"+model@models.{name}={name}" for name in names)])
    found = {name: cfg.models[name].get("network", {}) for name in names}
    return {name: OmegaConf.to_container(n, resolve=True) for name, n in found.items() if "_target_" in n}


if __name__ == "__main__":
    main()

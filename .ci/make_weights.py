"""Make the weights that come with the package again: python .ci/make_weights.py [NAME ...] (docs/weights.md).

Trains each network by its recipe, or resumes where an earlier call has stopped, and writes it in float16 with its card
into sr_lightning/pretrained/. Needs T91, BSDS500, Set5 and BSD100 in SR_DATA_ROOT, and an hour of a core each.
"""

import argparse
import json
from pathlib import Path

import sr_lightning
from sr_lightning.api.training import Run
from sr_lightning.checkpoints.checkpoint import Trained, build_network, load_best
from sr_lightning.checkpoints.interop import save_weights
from sr_lightning.export.writers import metadata
from sr_lightning.inference import fuse_for_inference
from sr_lightning.pretrained import CARD, FOLDER
from sr_lightning.runs.folder import RunFolder

PURPOSES = {
    "luma": "luma; colours are enlarged bicubically",
    "rgb": "RGB",
    "fast": "luma, at the cost of ESPCN; colours are enlarged bicubically",
}
RECIPES = {
    "luma_x2": "experiment=pretrained",
    "luma_x3": "experiment=pretrained scale=x3",
    "luma_x4": "experiment=pretrained scale=x4",
    "rgb_x2": "experiment=pretrained model.network.num_channels=3",
    "rgb_x4": "experiment=pretrained scale=x4 model.network.num_channels=3",
    "fast_x2": "experiment=wdsr_b_fast max_steps=64000",
}
DATA = "T91, and train and test of BSDS500 without 302003, which is Set5's woman: 490 images; LR by bicubic"
TERMS = "T91 has no stated terms; BSDS500 is for non-commercial research and education"
LIMITS = "For sharp images: it removes neither JPEG noise nor blur. Not for evidence: detail is guessed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(RECIPES)} (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("outputs/pretrained"), help="folder of the trainings")
    options = parser.parse_args()
    if unknown := set(options.names) - RECIPES.keys():
        parser.error(f"there is no recipe of {', '.join(sorted(unknown))}")
    for name in options.names or RECIPES:
        path = FOLDER / f"{name}.safetensors"
        write(name, train(name, options.runs / name), path)
        print(f"{path}, {path.stat().st_size / 1e3:.0f} kB: {json.dumps(card_scores(path))}")


def train(name: str, folder: Path) -> Run:
    """Train a network, or go on; a finished run is used unchanged."""
    run = RunFolder(folder)
    if run.result.is_file():
        return Run(folder)
    if run.last.is_file():
        return sr_lightning.train(resume=folder)
    return sr_lightning.train(*RECIPES[name].split(), hydra={"run": {"dir": folder}})


def write(name: str, run: Run, path: Path) -> None:
    """Write the weights in float16 without a card, score the file, then write it with its card."""
    made = folded(load_best(run.folder))
    facts = metadata(made)
    description = made.config["model"]["network"]
    save_weights(made.network.half(), path, description=description, metadata=facts)
    card = {
        "title": f"{type(made.network).__name__} x{facts['scale']}, {PURPOSES[name.partition('_')[0]]}",
        "recipe": f"python train.py {RECIPES[name]}",
        "commit": commit_of(run),
        "data": DATA,
        "terms": TERMS,
        "protocol": facts["protocol"],
        "scores": card_scores(path),
        "licence": "MIT",
        "limits": LIMITS,
    }
    save_weights(made.network.half(), path, description=description, metadata=facts | {CARD: json.dumps(card)})


def folded(trained: Trained) -> Trained:
    """Return a SPAN with plain convolutions, which needs a quarter of the bytes; other networks unchanged."""
    description = dict(trained.config["model"]["network"])
    if not description["_target_"].endswith(".SPAN"):
        return trained
    description["branches"] = False
    network = build_network(description, "the recipe")
    network.load_state_dict(fuse_for_inference(trained.network).state_dict())
    config = trained.config | {"model": {"network": description}}
    return Trained(network.eval(), trained.name, trained.step, config)


def card_scores(path: Path) -> dict[str, dict[str, float]]:
    """Score a file on Set5 and BSD100."""
    rows = sr_lightning.evaluate({"it": path}, ["Set5", "BSD100"], num_comparisons=0).means()
    means = {(row["dataset"], row["model"]): row for row in rows}
    return {
        name: {
            "psnr": round(means[name, "it"]["psnr_y"], 3),
            "ssim": round(means[name, "it"]["ssim_y"], 4),
            "bicubic": round(means[name, "bicubic"]["psnr_y"], 3),
        }
        for name in ("Set5", "BSD100")
    }


def commit_of(run: Run) -> str:
    """Return the commit that a training began with."""
    parts = json.loads((run.folder / "provenance.json").read_text())
    return parts[0]["code"]["sr_lightning"]["commit"]


if __name__ == "__main__":
    main()

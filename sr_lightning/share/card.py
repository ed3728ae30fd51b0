"""README.md of a shared network: a Hugging Face model card, metadata in YAML and text."""

from typing import TYPE_CHECKING, Any

import yaml

from sr_lightning import __version__
from sr_lightning.utils.markdown import markdown_table

if TYPE_CHECKING:
    from sr_lightning.share.files import Facts

LICENCES = (  # names that the hub knows; others are `other` with a name
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "openrail", "wtfpl", "isc"),
)
TEXT = """# {title}

{about}

## Use

With sr_lightning, on photos, folders and videos:

```bash
sr-upscale photo.jpg -c {reference}
```

```python
from sr_lightning import load

big = load("{reference}").upscale(image)  # PIL image, array or tensor
```

The network is described in the metadata of `{weights}`, and no code of it is run.

## Scores

{scores}

PSNR in dB. `scores.csv` has the scores of each image.
{pictures}
## Training

{recipe}{training}

All settings are in `config.yaml`, the values logged while training in `metrics.csv`.

## Limits

{limits}

Licence of the weights: {licence}.{data_terms}
"""


def card(facts: "Facts") -> str:
    """Return README.md: metadata, and text for people."""
    front = yaml.safe_dump(card_metadata(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{text(facts)}"


def card_metadata(facts: "Facts") -> dict[str, Any]:
    """Return the metadata of a model card, as https://huggingface.co/docs/hub/model-cards describes it."""
    scale, architecture = facts.trained.network.scale, type(facts.trained.network).__name__
    known = facts.licence.lower() in LICENCES
    return {
        "license": facts.licence.lower() if known else "other",
        **({} if known else {"license_name": facts.licence.lower()}),
        "library_name": "sr_lightning",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "image-super-resolution", architecture.lower(), f"x{scale}"],
        **({"datasets": facts.data} if facts.data else {}),
        "metrics": ["psnr", "ssim"],
        "model-index": [{"name": facts.name, "results": [result(row, scale) for row in means(facts)]}],
    }


def result(row: dict[str, Any], scale: int) -> dict[str, Any]:
    """Return the scores on a data set as an entry of `model-index`."""
    return {
        "task": {"type": "image-to-image", "name": f"Super-resolution x{scale}"},
        "dataset": {"name": row["dataset"], "type": row["dataset"]},
        "metrics": [
            {"type": kind, "value": round(row[key], digits), "name": f"{kind.upper()}, {row['protocol']}"}
            for kind, digits in (("psnr", 2), ("ssim", 4))
            if (key := column(row, kind))
        ],
    }


def column(row: dict[str, Any], kind: str) -> str | None:
    """Return the column of psnr or ssim, whose name ends in the channel."""
    return next((key for key in row if key.startswith(f"{kind}_")), None)


def means(facts: "Facts") -> list[dict[str, Any]]:
    """Return the rows of means of the network."""
    return [row for row in facts.scores.means() if row["model"] != "bicubic"]


def text(facts: "Facts") -> str:
    """Return the text of the card."""
    network = facts.trained.network
    colours = "RGB" if network.num_channels == 3 else "luma; colours are enlarged bicubically"
    count = sum(parameter.numel() for parameter in network.parameters())
    title = f"{facts.name}, x{network.scale}"
    return TEXT.format(
        title=title,
        about=f"A network that enlarges images by {network.scale}: {type(network).__name__} on {colours}, with "
        f"{count:,} parameters, trained with sr_lightning {__version__}.",
        reference=facts.reference,
        weights=f"{facts.name}.safetensors",
        scores=score_text(facts),
        pictures="\nA place of an image in each version, HR at the right:\n" * bool(facts.pictures)
        + "".join(f"\n![{path.stem}]({path.name})\n" for path in facts.pictures),
        recipe=f"```bash\n{facts.recipe}\n```\n\n" if facts.recipe else "",
        training=training_text(facts),
        limits=limits(facts),
        licence=facts.licence,
        data_terms=" The images that it was trained on have terms of their own." if facts.data else "",
    )


def score_text(facts: "Facts") -> str:
    """Return the table of means: PSNR in dB and SSIM, also of bicubic, and the protocol."""
    bicubic = {row["dataset"]: row for row in facts.scores.means() if row["model"] == "bicubic"}
    lines = [["data set", "PSNR", "SSIM", "PSNR of bicubic", "protocol"]]
    for row in means(facts):
        psnr, ssim = column(row, "psnr"), column(row, "ssim")
        lines.append(
            [
                row["dataset"],
                f"{row[psnr]:.2f}" if psnr else "",
                f"{row[ssim]:.4f}" if ssim else "",
                f"{bicubic[row['dataset']][psnr]:.2f}" if psnr and row["dataset"] in bicubic else "",
                row["protocol"],
            ]
        )
    return markdown_table(lines)


def training_text(facts: "Facts") -> str:
    """Return data, steps, time and code of the training."""
    lines = [f"- images: {', '.join(facts.data) or 'of its author, which are not shared'}"]
    steps = f"{facts.trained.step:,}" if facts.trained.step is not None else "unknown"
    time = f", trained in {facts.seconds / 60:.1f} minutes" if facts.seconds is not None else ""
    lines.append(f"- steps: {steps} of {facts.config['max_steps']:,} (the best in validation){time}")
    if facts.commit:
        lines.append(f"- code: commit {facts.commit}{', with uncommitted changes' if facts.changed else ''}")
    return "\n".join(lines)


def limits(facts: "Facts") -> str:
    """Return what the network is not for, as its settings show."""
    lines = []
    if "discriminator" in facts.config["model"]:
        lines.append("It was trained against a discriminator: it invents detail that looks right, and PSNR falls.")
    degradation = (facts.config.get("degradation") or {}).get("_target_", "")
    if degradation.endswith(".Bicubic"):
        lines.append(
            "For sharp images: it was trained on LR by bicubic, and removes neither the noise of JPEG nor blur."
        )
    elif degradation:
        lines.append("It was trained on LR with the random defects in `config.yaml`; it may smooth sharp images.")
    lines.append("Not for evidence or measurement: detail that is not in the image is guessed.")
    return "\n".join(f"- {line}" for line in lines)

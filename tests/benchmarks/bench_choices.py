"""Choices by measurement beside each alternative, for every network in conf/model: training steps and enlarging.

  python tests/benchmarks/bench_choices.py                        all networks, in every precision that torch has
  python tests/benchmarks/bench_choices.py --model espcn vdsr     some
  ONEDNN_MAX_CPU_ISA=AVX2 python tests/benchmarks/bench_choices.py    as on a processor without wider instructions

"auto" chooses first, with nothing kept from before; then each alternative is measured again, in turn, and the least of
several rounds counts. "of the best" is the best alternative's time over that of the chosen one: 1.00, or a little less
where a lower precision gains less than 10 %.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sr_lightning.checkpoints.checkpoint import build_network
from sr_lightning.inference import FastInference, fuse_for_inference
from sr_lightning.inference.forms import Form, possible_forms
from sr_lightning.training.choices import Trial
from sr_lightning.utils import timings
from sr_lightning.utils.malloc import keep_freed_memory
from sr_lightning.utils.markdown import markdown_table
from sr_lightning.utils.timings import least_times, processor
from tests.helpers import CONF, compose

PRECISIONS = ("32-true", "bf16-mixed")
SIDE = 96  # LR pixels of the enlarged tile


def training(name: str, words: list[str]) -> list[str]:
    cfg = compose(f"model={name}", *words)
    module = instantiate(cfg.model, _convert_="all")
    if module.optimizer is None:
        return [name, "", "", "", ""]
    with tempfile.TemporaryDirectory() as cache:
        cfg.cache_dir = cache
        trial = Trial(cfg, module)
        chosen = trial.fastest_precision()
        seconds, _ = least_times({precision: trial.step(precision) for precision in PRECISIONS}, budget=2.0)
    shown = [f"{1000 * seconds[precision]:.1f}" for precision in PRECISIONS]
    return [name, *shown, chosen, f"{min(seconds.values()) / seconds[chosen]:.2f}"]


@torch.inference_mode()
def enlarging(name: str, scale: int) -> list[str]:
    cfg = compose(f"model={name}", f"scale=x{scale}")
    torch.manual_seed(0)
    network = build_network(OmegaConf.to_container(cfg.model.network, resolve=True), "conf").eval()
    lr = torch.rand(1, network.num_channels, SIDE, SIDE)
    fast = FastInference(network)
    fused = fuse_for_inference(network)
    forms = {
        form.name: form for form in possible_forms(fused, torch.device("cpu"), "float32", network.num_channels, scale)
    }
    forms["bfloat16"] = Form(fused, "bfloat16", "bfloat16")
    steps = {"eager": lambda: network(lr), "auto": lambda: fast(lr)}
    steps |= {form: lambda form=form: forms[form](lr) for form in forms}
    seconds, _ = least_times(steps, budget=2.0)
    best = min(value for form, value in seconds.items() if form not in ("eager", "auto"))
    names = ("float32", "float32 by NNPACK", "bfloat16", "auto")
    ratios = [f"{seconds['eager'] / seconds[form]:.2f}" if form in seconds else "" for form in names]
    return [f"{name} x{scale}", *ratios, fast.form.name, f"{best / seconds['auto']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in ("base", "srgan"))
    parser.add_argument("--model", nargs="+", default=networks)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=24)
    parser.add_argument("--scale", type=int, nargs="+", default=[2, 4], help="of the enlarged tile")
    options = parser.parse_args()
    keep_freed_memory()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    words = [f"data.batch_size={options.batch}", f"data.patch_size={options.patch}", "max_steps=1000"]
    rows = [["training, ms a step", *PRECISIONS, "auto", "of the best"]]
    for name in options.model:
        rows.append(training(name, words))
        print(" | ".join(rows[-1]), flush=True)
    forms = [["enlarging, x eager", "float32", "NNPACK", "bfloat16", "auto", "form of auto", "of the best"]]
    for name in options.model:
        for scale in options.scale:
            with tempfile.TemporaryDirectory() as cache:
                timings.cache_dir = lambda cache=cache: Path(cache)
                forms.append(enlarging(name, scale))
            print(" | ".join(forms[-1]), flush=True)
    print(f"\n{markdown_table(rows)}\n\n{markdown_table(forms)}")


if __name__ == "__main__":
    main()

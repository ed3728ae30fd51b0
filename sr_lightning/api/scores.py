"""Scoring from Python, and tables of scores that a notebook shows."""

import base64
import copy
import csv
import html
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from hydra.errors import InstantiationException
from PIL import Image

from sr_lightning.api.settings import arguments
from sr_lightning.cli import compose_config
from sr_lightning.errors import InputError, find_input_error
from sr_lightning.evaluation.score_table import NOT_SCORES, score_lines, score_table
from sr_lightning.runs.folder import RunFolder, find_checkpoint
from sr_lightning.sweeps.run import hydra_value
from sr_lightning.upscale.upscaler import Upscaler

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sr_lightning.api.training import Run
    from sr_lightning.evaluation.scoring import ScoredModel

    Subject = str | Path | Run | Upscaler | nn.Module

Row = dict[str, Any]
GIVEN = ("ckpt", "runs", "model", "name", "run_dir", "wandb")  # settings of evaluate.py that arguments replace


class Scores(Sequence[Row]):
    """Scores, one row per network and image, and one per network and data set with image "mean".

    A row has model, scale, dataset, image, the scores (psnr_y in dB and ssim_y, or of another channel, and further
    measures) and the protocol. A notebook shows the means as a table, and the pictures.

    Args:
        rows: As of `Scorer.score_sets`.
        pictures: Comparisons of one place in each of the first images.
    """

    def __init__(self, rows: Sequence[Row], pictures: Sequence[Image.Image] = ()) -> None:
        self.rows, self.pictures = list(rows), list(pictures)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        protocols = ", ".join(sorted({row["protocol"] for row in self.rows}))
        return f"{score_table(self.rows)}\nprotocol {protocols}"

    def _repr_html_(self) -> str:
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in score_lines(self.rows)]
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>{table}</table>{''.join(map(_html, self.pictures))}"

    def means(self) -> list[Row]:
        """Return the rows of means over a data set."""
        return [row for row in self.rows if row["image"] == "mean"]

    def to_frame(self) -> Any:
        """Return the rows as a pandas.DataFrame.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise InputError("to_frame() needs pandas: pip install pandas") from None
        return pd.DataFrame(self.rows)


def _html(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f'<img style="max-width:100%" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def read_scores(folder: str | Path) -> Scores:
    """Read the scores and pictures in a run's directory.

    Raises:
        InputError: There are none.
    """
    run = RunFolder(folder)
    if not run.results.is_file():
        raise InputError(f"{run.results} does not exist: the run has not been scored")
    with run.results.open(newline="", encoding="utf-8") as file:
        rows = [
            {key: value if key in NOT_SCORES else float(value) if value else None for key, value in row.items()}
            | {"scale": int(row["scale"])}
            for row in csv.DictReader(file)
        ]
    return Scores(rows, [_opened(path) for path in sorted(run.pictures.glob("*.png"))])


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def evaluate(
    models: "Subject | Sequence[Subject] | Mapping[str, Subject]",
    benchmarks: str | Sequence[str] = "Set5",
    *overrides: str,
    **settings: Any,
) -> Scores:
    """Score networks, and bicubic, on benchmarks as `python evaluate.py` does, to the same digits.

    Args:
        models: One, a list, or a table by name of: a file of weights or the directory of a run; a `Run`; an
            `Upscaler`, whose network is scored as trained, in float32; or a torch.nn.Module with `scale` and
            `num_channels`.
        benchmarks: Folders of `data_root`/benchmark, such as ["Set5", "BSD100"].
        *overrides: Settings of evaluate.py as on its command line.
        **settings: Settings by name: data_root, protocol="daala", measures=["spectrum"], self_ensemble=True,
            num_comparisons=3 (pictures of each data set).

    Raises:
        InputError: As evaluate.py reports it.
    """
    names = [benchmarks] if isinstance(benchmarks, str | Path) else benchmarks
    words = arguments(overrides, settings | {"benchmarks": names})
    if given := [word for word in words if word.lstrip("+").partition("=")[0].partition(".")[0] in GIVEN]:
        raise InputError(f"{given[0]}: networks are the first argument of evaluate(), and it writes no files")
    subjects = _named(models)
    with tempfile.TemporaryDirectory(prefix="sr_lightning_") as folder:
        try:
            return _score(subjects, compose_config("evaluate", [*words, f"run_dir={hydra_value(folder)}", "name=null"]))
        except InstantiationException as error:
            raise find_input_error(error) or error from None


def _named(models: Any) -> list[tuple[str | None, Any]]:
    """Return the networks that are given, one, several or by name, with their names; files as paths.

    Raises:
        InputError: There are none, or one is of the wrong type or a file that does not exist.
    """
    if isinstance(models, Mapping):
        named = [(str(name), subject) for name, subject in models.items()]
    else:
        named = [(None, subject) for subject in (models if isinstance(models, list | tuple) else [models])]
    if not named:
        raise InputError("evaluate() needs a network: a file of weights, a run, or what load() returns")
    return [(name, _checked(subject)) for name, subject in named]


def _checked(subject: Any) -> Any:
    from torch import nn

    if isinstance(subject, str | os.PathLike):
        return find_checkpoint(subject)
    if isinstance(subject, Upscaler) and subject.read is None:
        raise InputError("this Upscaler was built from a network in memory: pass the network itself to evaluate()")
    is_network = isinstance(subject, nn.Module) and hasattr(subject, "scale") and hasattr(subject, "num_channels")
    if not isinstance(subject, Upscaler) and not is_network:
        raise InputError(
            f"evaluate() takes a file of weights, a run, what load() returns, or a torch.nn.Module with scale and "
            f"num_channels, not a {type(subject).__name__}"
        )
    return subject


def _score(subjects: Sequence[tuple[str | None, Any]], cfg: "DictConfig") -> Scores:
    from sr_lightning.evaluation.checks import check_request
    from sr_lightning.evaluation.evaluate import score_models
    from sr_lightning.evaluation.scoring import Scorer

    check_request(cfg, with_subject=False)
    scorer = Scorer.from_config(cfg)
    rows, images = score_models(_models(subjects, cfg), cfg, scorer)
    return Scores(rows, [_opened(path) for path in images.comparisons])


def _models(subjects: Sequence[tuple[str | None, Any]], cfg: "DictConfig") -> "list[ScoredModel]":
    """Load the networks."""
    from sr_lightning.evaluation.evaluate import requested_models
    from sr_lightning.evaluation.scoring import ScoredModel
    from sr_lightning.inference import SelfEnsemble
    from sr_lightning.runs.targets import allowed

    files = [subject for _, subject in subjects if isinstance(subject, Path)]
    of_files = iter(requested_models(files, scale=cfg.scale, allow=allowed(cfg)) if files else ())
    models = []
    for name, subject in subjects:
        ensemble = cfg.self_ensemble
        if isinstance(subject, Path):
            model = next(of_files)
        elif isinstance(subject, Upscaler):
            trained, ensemble = subject.read(), ensemble or subject.self_ensemble
            model = ScoredModel(trained.name, trained.network, step=trained.step)
        else:
            model = ScoredModel(type(subject).__name__, copy.deepcopy(subject).eval())
        if cfg.scale not in (None, model.network.scale):
            raise InputError(f"{model.name} is x{model.network.scale}, not x{cfg.scale}: leave scale out")
        if ensemble:
            model = replace(model, name=f"{model.name}+", network=SelfEnsemble(model.network))
        models.append(model if name is None else replace(model, name=name))
    return models

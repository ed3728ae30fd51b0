"""Scores of runs, computed once and cached in each run's directory."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.checkpoints.checkpoint import load_network
from sr_lightning.data.sources import Pair
from sr_lightning.errors import InputError
from sr_lightning.evaluation.images import EvaluationImages
from sr_lightning.evaluation.scoring import NotFiniteError, ScoredModel, Scorer
from sr_lightning.evaluation.subjects import subject
from sr_lightning.inference import SelfEnsemble
from sr_lightning.leaderboard.runs import Run
from sr_lightning.leaderboard.score_cache import ScoreCache
from sr_lightning.metrics.protocol import report_left_out

log = logging.getLogger(__name__)

DIVERGED = "diverged"  # status of a run whose network is not finite
Rows = list[dict[str, Any]]
Failed = dict[Path, tuple[str, str]]  # a run's directory -> its status, and the reason why it is not in the table


class Scores:
    """Scores of runs on benchmarks, and of bicubic on the same images.

    Args:
        scorer: Scores the networks.
        sets: Scale -> benchmark -> images.
        settings: The configs of protocol and degradation, part of the cache's key.
        self_ensemble: Score self-ensembles of the networks.
        allow: Packages besides this project, or classes, that a run may name as its network.
    """

    def __init__(
        self,
        scorer: Scorer,
        sets: Mapping[int, Mapping[str, Sequence[Pair]]],
        settings: Mapping[str, Any],
        self_ensemble: bool,
        allow: Sequence[str] = (),
    ) -> None:
        self.scorer, self.sets, self.self_ensemble, self.allow = scorer, sets, self_ensemble, allow
        self.caches: dict[Path, ScoreCache] = {}
        self.bicubic: dict[tuple[int, str], Rows] = {}
        self.settings = dict(settings) | {"self_ensemble": self_ensemble, "measures": list(scorer.measures)}

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks, in the order they were given."""
        return list(dict.fromkeys(name for sets in self.sets.values() for name in sets))

    def scores_of_run(self, run: Run) -> dict[str, Rows]:
        """Score a run, benchmark -> rows, unless cached; one network in memory, one image at a time.

        Raises:
            InputError: The checkpoint cannot be read, or images cannot be scored.
        """
        model = None
        for benchmark, pairs in self.sets[run.config.scale].items():
            if self._cached(run, benchmark) is None:
                if model is None:
                    log.info("scoring %s", run.directory)
                    model = self._load("model", run)
                rows = self.scorer.score_sets(
                    [model],
                    {benchmark: pairs},
                    baseline=(run.config.scale, benchmark) not in self.bicubic,
                )
                self.store(run, benchmark, rows, model.name)
        return {benchmark: self._cached(run, benchmark) for benchmark in self.sets[run.config.scale]}

    def with_pictures(
        self, scale: int, runs: Mapping[str, Run], failed: Failed, images: EvaluationImages
    ) -> tuple[Rows, list[dict[str, Any]]]:
        """Score runs side by side, all in memory and one image at a time, and write pictures.

        Args:
            scale: The factor of all runs.
            runs: Name -> run.
            failed: Directory -> status and reason; runs are added whose checkpoints cannot be read, or whose weights or
                outputs are not finite.
            images: Writes the pictures.

        Returns:
            Rows as of `score_sets`, and the scored networks as `subject` describes them.

        Raises:
            InputError: Images cannot be scored.
        """
        models = []
        for name, run in runs.items():
            try:
                models.append(self._load(name, run))
            except InputError as error:
                failed[run.directory] = "not scored", str(error)
        rows: Rows = []
        while models and not rows:
            try:
                rows = self.scorer.score_sets(models, self.sets[scale], images)
            except NotFiniteError as error:
                failed[runs[error.model].directory] = DIVERGED, str(error)
                models = [model for model in models if model.name != error.model]
                images.forget(scale)
        for model in models:
            for benchmark in self.sets[scale]:
                self.store(runs[model.name], benchmark, [r for r in rows if r["dataset"] == benchmark], model.name)
        return rows, [subject(model) for model in models]

    def _load(self, name: str, run: Run) -> ScoredModel:
        trained = load_network(run.checkpoint, self.allow)
        network = SelfEnsemble(trained.network) if self.self_ensemble else trained.network
        return ScoredModel(name, network, run.checkpoint, trained.step)

    def _key(self, scale: int, benchmark: str) -> dict[str, Any]:
        """Everything that scores depend on but the checkpoint; images are identified by name and size."""
        pairs = self.sets[scale][benchmark]
        sizes = [(p.name, p.hr.stat().st_size, p.lr.stat().st_size if p.lr else None) for p in pairs]
        digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
        return {"kind": "scores", "benchmark": benchmark, "images": digest} | self.settings

    def _cached(self, run: Run, benchmark: str) -> Rows | None:
        value = self.cache_of(run).get(self._key(run.config.scale, benchmark))
        if value is None or _is_outdated(value):
            return None
        left_out = value.get("left_out", [])
        self.scorer.left_out[f"{benchmark} x{run.config.scale}"] = left_out
        report_left_out(benchmark, tuple(left_out), len(self.sets[run.config.scale][benchmark]))
        self.bicubic.setdefault((run.config.scale, benchmark), value["bicubic"])
        return value["model"]

    def store(self, run: Run, benchmark: str, rows: Rows, name: str) -> None:
        """Cache the rows of a run, called `name` in them, and those of bicubic if they are among them."""
        scale = run.config.scale
        if baseline := [_bare(row) for row in rows if row["model"] == "bicubic"]:
            self.bicubic.setdefault((scale, benchmark), baseline)
        own = [_bare(row) for row in rows if row["model"] == name]
        scored = {row["image"] for row in own}
        left_out = [pair.name for pair in self.sets[scale][benchmark] if pair.name not in scored]
        value = {"bicubic": self.bicubic[scale, benchmark], "model": own, "left_out": left_out}
        self.cache_of(run).put(self._key(scale, benchmark), value)

    def cache_of(self, run: Run) -> ScoreCache:
        """Return the cache of a run."""
        if run.directory not in self.caches:
            self.caches[run.directory] = ScoreCache(run.directory, run.checkpoint)
        return self.caches[run.directory]


def settings_of_scores(cfg: DictConfig) -> dict[str, Any]:
    """Return the configs of protocol and degradation, which are part of the cache's key."""
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("protocol", "degradation")}


def cache_scores(cfg: DictConfig, scorer: Scorer, sets: Mapping[str, Sequence[Pair]], rows: Rows) -> None:
    """Cache the scores that a training has just computed, so that no leaderboard computes them again.

    Args:
        cfg: The run's config.
        scorer: By which the best checkpoint was scored.
        sets: Benchmark -> images.
        rows: Of `score_sets`, with bicubic.
    """
    scores = Scores(scorer, {cfg.scale: sets}, settings_of_scores(cfg), self_ensemble=False)
    run = Run.read(Path(cfg.run_dir))
    for benchmark in sets:
        scores.store(run, benchmark, [row for row in rows if row["dataset"] == benchmark], str(cfg.name))


def _is_outdated(value: Mapping[str, Any]) -> bool:
    """Return True for scores of an earlier version that may include images that bicubic reproduces.

    Their PSNR is at least 48 dB, that of an error of one grey level everywhere.
    """
    if "left_out" in value:
        return False
    bicubic, own = ([row[key] for row in value[name] for key in row if "psnr" in key] for name in ("bicubic", "model"))
    return not (all(psnr < 48 for psnr in bicubic) and all(psnr < math.inf for psnr in own))  # NaN as well


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a row without the columns that its place in the cache implies."""
    return {key: value for key, value in row.items() if key not in ("model", "scale", "dataset")}

"""Leaderboard of all finished runs below a folder: scores on benchmarks in one table, with plots."""

import itertools
import logging
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sr_lightning.configs import command
from sr_lightning.data.sources import Pair, benchmark_set
from sr_lightning.errors import InputError
from sr_lightning.evaluation.checks import paths_of
from sr_lightning.evaluation.images import EvaluationImages
from sr_lightning.evaluation.report import Versions, write_evaluation_report
from sr_lightning.evaluation.score_table import write_results
from sr_lightning.evaluation.scoring import NotFiniteError, Scorer
from sr_lightning.evaluation.wandb_scores import check_record, summary_scores, write_scores
from sr_lightning.leaderboard.costs import MEASURED, Costs
from sr_lightning.leaderboard.page import write_page
from sr_lightning.leaderboard.plots import plot_costs, plot_validation, styles
from sr_lightning.leaderboard.runs import Group, Run, find_runs, group
from sr_lightning.leaderboard.scores import DIVERGED, Failed, Rows, Scores, settings_of_scores
from sr_lightning.leaderboard.table import (
    for_page,
    make_row,
    markdown,
    psnr_key,
    remarks,
    write_csv,
    write_json,
)
from sr_lightning.network_costs import HEIGHT, WIDTH, machine
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.targets import allowed
from sr_lightning.sweeps.invocation import relative
from sr_lightning.utils.atomic_files import write_text
from sr_lightning.utils.messages import listing

log = logging.getLogger(__name__)

BICUBIC = {"_target_": "sr_lightning.networks.Bicubic"}


@dataclass(frozen=True)
class Page:
    """Contents of report.html: rows of scores, their images, and the networks."""

    rows: Rows = field(default_factory=list)
    versions: list[Versions] = field(default_factory=list)
    subjects: list[dict[str, Any]] = field(default_factory=list)


def evaluate(cfg: DictConfig) -> float:
    """Score the runs of `runs=` and rank them.

    Writes into run_dir: leaderboard.md, .csv and .json, results.csv, plots, and with report_images=N report.html.

    Returns:
        Mean PSNR of the table's first row, in dB.

    Raises:
        InputError: Conflicting settings, folders without runs, missing benchmarks, or no run that could be scored;
            or, after everything is written, networks that are not finite.
    """
    runs = requested_runs(paths_of(cfg.runs), cfg.scale)
    groups, repeated = group([run for run in runs if run.config is not None])
    failed = {directory: ("repeated", why) for directory, why in repeated.items()}
    failed |= {run.directory: (run.status, run.reason) for run in runs if not run.is_scorable}
    if cfg.self_ensemble:
        groups = [replace(one, label=f"{one.label}+") for one in groups]

    scales = sorted({run.config.scale for run in runs if run.is_scorable})
    scores = Scores(
        Scorer.from_config(cfg),
        benchmark_sets(cfg.data_root, cfg.benchmarks, scales),
        settings_of_scores(cfg),
        cfg.self_ensemble,
        allowed(cfg),
    )
    for sets in scores.sets.values():
        scores.scorer.check_sets(sets)
    page = Page()
    if cfg.report_images or cfg.num_comparisons:
        images = EvaluationImages(cfg.run_dir, cfg.num_comparisons, cfg.report_images)
        page = scored_with_pictures(scores, groups, failed, images)
    known = score_all(scores, groups, failed)
    left_out = [
        dict(zip(("run", "status", "reason"), (str(relative(directory)), *failed[directory]), strict=True))
        for directory in (run.directory for run in runs)
        if directory in failed
    ]
    if not known:
        lines = "".join(f"\n  {': '.join(filter(None, one.values()))}" for one in left_out)
        raise InputError(f"runs: no run can be scored:{lines}")
    rows = ranked(scores, groups, known)
    folder = RunFolder(cfg.run_dir)
    not_scored = scores.scorer.facts
    content = write(folder.path, rows, left_out, [f"{what}: {images}" for what, images in not_scored.items()])
    write_results(folder.results, all_rows(scores, groups, known))
    if cfg.wandb:
        write_run_scores(cfg, groups, known)
    plot(folder.path, rows, groups)
    facts = not_scored | {"*": "; ".join(remarks(rows))} if any(row["differs"] for row in rows) else {}
    if left_out:
        facts["not in the table"] = "; ".join(f"{one['run']} ({one['status']})" for one in left_out)
    report = (folder.path, page.rows, page.versions, scores.scorer.protocol)
    write_evaluation_report(*report, leaderboard=for_page(rows), facts=facts, subjects=page.subjects)
    write_page(folder.path, content, groups, failed)
    if diverged := [f"{relative(path)}: {why}" for path, (status, why) in failed.items() if status == DIVERGED]:
        raise InputError(f"{len(diverged)} runs are not in the table:{listing(diverged)}")
    return rows[0][psnr_key(rows[0])]


def requested_runs(folders: Sequence[str], scale: int | None) -> list[Run]:
    """Find the runs in folders, of one scale unless that is None.

    Raises:
        InputError: A folder without runs, or no run of that scale.
    """
    runs = find_runs(folders)
    if scale is None:
        return runs
    scales = sorted({run.config.scale for run in runs if run.config is not None})
    if scale not in scales:
        there = ", ".join(f"x{each}" for each in scales)
        raise InputError(f"scale=x{scale} was requested, but the runs are of {there or 'no known scale'}")
    return [run for run in runs if run.config is None or run.config.scale == scale]


def benchmark_sets(
    data_root: str | Path, benchmarks: Sequence[str], scales: Sequence[int]
) -> dict[int, dict[str, list[Pair]]]:
    """List the images to score on: scale -> benchmark -> images.

    Raises:
        InputError: Names all benchmarks that are missing, or lack files of a scale.
    """
    sets: dict[int, dict[str, list[Pair]]] = {scale: {} for scale in scales}
    problems: dict[str, None] = {}
    for scale in scales:
        for name in benchmarks:
            try:
                sets[scale][name] = benchmark_set(data_root, name, scale)
            except InputError as error:
                problems[str(error)] = None
    if problems:
        raise InputError("\n".join(problems))
    return sets


def scored_with_pictures(scores: Scores, groups: Sequence[Group], failed: Failed, images: EvaluationImages) -> Page:
    """Score one run of each group and write its images; runs that cannot be read are added to `failed`."""
    page = Page()
    for scale in scores.sets:
        models = {}
        for one in (one for one in groups if one.runs[0].config.scale == scale):
            run = next((run for run in one.runs if run.directory not in failed), None)
            if run is not None:
                models[one.name_of(run)] = run
        rows, subjects = scores.with_pictures(scale, models, failed, images)
        page.rows.extend(rows)
        page.subjects.extend(subjects)
    page.versions.extend(images.versions)
    return page


def score_all(scores: Scores, groups: Sequence[Group], failed: Failed) -> dict[Path, dict[str, Rows]]:
    """Score all runs, directory -> benchmark -> rows. A run that fails is added to `failed`."""
    known = {}
    for run in (run for one in groups for run in one.runs if run.directory not in failed):
        try:
            known[run.directory] = scores.scores_of_run(run)
        except NotFiniteError as error:
            failed[run.directory] = DIVERGED, str(error)
        except InputError as error:
            failed[run.directory] = "not scored", str(error)
        except Exception as error:
            log.exception("%s", run.directory)
            failed[run.directory] = "not scored", f"{type(error).__name__}: {error}"
    return known


def ranked(scores: Scores, groups: Sequence[Group], known: Mapping[Path, Mapping[str, Rows]]) -> Rows:
    """Make the leaderboard's rows, bicubic included, by benchmark, scale and PSNR, the best first."""
    costs, self_ensemble = Costs(scores.allow), scores.self_ensemble
    rows = []
    for benchmark in scores.benchmarks:
        for scale in (scale for scale in scores.sets if (scale, benchmark) in scores.bicubic):
            baseline = scores.bicubic[scale, benchmark][-1]
            who = {"benchmark": benchmark, "scale": scale, "model": "bicubic", "data": ""}
            network = BICUBIC | {"scale": scale}
            config = {"model": {"network": network}}
            found = [make_row(who, [baseline], baseline, config, costs.measure(network))]
            for one in groups:
                runs = [run for run in one.runs if run.directory in known and run.config.scale == scale]
                if runs:
                    found.append(
                        make_row(
                            who | {"model": one.label, "data": runs[0].data},
                            [known[run.directory][benchmark][-1] for run in runs],
                            baseline,
                            None if self_ensemble else OmegaConf.to_container(runs[0].config, resolve=True),
                            costs.measure(runs[0].network, [scores.cache_of(run) for run in runs], self_ensemble),
                            [run.result.get("seconds") for run in runs],
                        )
                    )
            found.sort(key=lambda row: -row[psnr_key(row)])
            number = itertools.count(1)
            rows += [row | {"rank": None if row["model"] == "bicubic" else next(number)} for row in found]
    return rows


def all_rows(scores: Scores, groups: Sequence[Group], known: Mapping[Path, Mapping[str, Rows]]) -> Rows:
    """List every score of every run, image by image, for results.csv."""
    rows = []
    for (scale, benchmark), baseline in scores.bicubic.items():
        tables = {"bicubic": baseline} | {
            one.name_of(run): known[run.directory][benchmark]
            for one in groups
            for run in one.runs
            if run.directory in known and run.config.scale == scale
        }
        for name, table in tables.items():
            rows += [{"model": name, "scale": scale, "dataset": benchmark} | row for row in table]
    return rows


def write_run_scores(cfg: DictConfig, groups: Sequence[Group], known: Mapping[Path, Mapping[str, Rows]]) -> None:
    """Write the mean scores of each run into its summary in Weights & Biases, and log why some have none there."""
    problems = []
    for run in (run for one in groups for run in one.runs if run.directory in known):
        rows = [{"dataset": name} | row for name, table in known[run.directory].items() for row in table]
        config = OmegaConf.to_container(run.config)
        try:
            check_record(run.directory)
            write_scores(run.directory, config.get("logger"), summary_scores(rows, config, cfg))
        except InputError as error:
            problems.append(str(error))
    if problems:
        counts = (len(problems), len(known))
        log.warning("scores of %d of %d runs are not in Weights & Biases:%s", *counts, listing(problems))


def write(folder: Path, rows: Rows, left_out: Rows, notes: Sequence[str]) -> dict[str, Any]:
    """Write leaderboard.md, .csv and .json with these and the usual notes into a folder, and log the Markdown.

    Returns:
        Contents of leaderboard.json.
    """
    protocols: dict[str, dict[str, None]] = {}  # -> the benchmarks scored under it
    for row in rows:
        protocols.setdefault(row["protocol"], {})[row["benchmark"]] = None
    several = len(protocols) > 1
    names = ", ".join(f"{name} ({', '.join(sets)})" if several else name for name, sets in protocols.items())
    notes = [
        f"protocol {names}; gain over bicubic and distance to the published PSNR in dB",
        f"multiply-adds for an output of {WIDTH}x{HEIGHT}; {MEASURED.format(machine=machine())}",
        "± is the standard deviation over seeds",
        *notes,
    ]
    words = f"{command(sys.argv[0])} {shlex.join(sys.argv[1:])}"
    text = markdown(rows, left_out, notes)
    write_text(folder / "leaderboard.md", f"{text}\n    {words}\n")
    write_csv(folder / "leaderboard.csv", rows)
    content = {"rows": rows, "not_in_the_table": left_out, "notes": notes, "command": words}
    write_json(folder / "leaderboard.json", content)
    columns = shutil.get_terminal_size()[0]
    log.info("%s\n%s", folder / "leaderboard.md", markdown(rows, left_out, notes, columns))
    return content


def plot(folder: Path, rows: Rows, groups: Sequence[Group]) -> None:
    """Write the plots: PSNR against costs, and the validation curves of all runs."""
    model_styles = styles(one.label for one in groups)
    plot_costs(folder / "psnr_parameters.png", rows, "parameters", "parameters", model_styles)
    measured = f"milliseconds for {WIDTH}x{HEIGHT} on {machine()}"
    plot_costs(folder / "psnr_milliseconds.png", rows, "milliseconds", measured, model_styles)
    curves = []
    for one in groups:
        if of_group := [run.cell.curve for run in one.runs if run.cell.curve]:
            curves.append((one.runs[0].config.scale, one.label, of_group))
    plot_validation(folder / "validation.png", curves, model_styles)

"""study.png: the value of each trial, the importance of the settings, and the values over each setting."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_lightning.utils.plots import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

FEWEST = 5  # trials with a value, below which importance is chance
COLUMNS = 3
VALUE, BEST, FAILED = "#0072B2", "#D55E00", "0.5"


def draw_study(path: Path, study: "Study") -> str:
    """Draw a study whose highest value is the best.

    Args:
        path: The PNG file; not written unless a trial has a value.
        study: Trials that failed are marked.

    Returns:
        One line: the file, and what is not drawn and why.

    Raises:
        InputError: The file cannot be written.
    """
    from optuna.trial import TrialState

    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    done = [t for t in trials if t.state == TrialState.COMPLETE and math.isfinite(t.value)]
    if not done:
        return f"{path.name} is not drawn: {no_value(len(trials))}"
    shares, without = importances(study, len(done))
    names = sorted({name for trial in done for name in trial.params})
    values = sorted(trial.value for trial in done)
    quarter = values[len(values) // 4]
    low = max(values[0], quarter - 1.5 * (values[-1] - quarter))  # values far below are triangles on the lower edge
    room = 0.06 * (values[-1] - low) or 0.1
    number = 1 + bool(shares) + len(names)
    columns = min(COLUMNS, number)
    with picture(path, -(-number // columns), columns, (4.2, 3.2)) as (_, panels):
        free = itertools.chain(*panels)
        _draw_history(next(free), trials, done, low)
        if shares:
            _draw_importances(next(free), shares)
        slices = list(itertools.islice(free, len(names)))
        for axes, name in zip(slices, names, strict=True):
            _draw_slice(axes, [trial for trial in done if name in trial.params], name, low)
        for axes in (panels[0][0], *slices):
            axes.set(ylabel="PSNR, dB", ylim=(low - room, values[-1] + room))
        for axes in free:
            axes.set_visible(False)
    return f"{path}: the trials{', the importance' if shares else ''} and the slices of the settings{without}"


def no_value(number: int) -> str:
    """Explain why a study of a number of trials has no value."""
    if number == 0:
        return "the study has no trials; give hydra.sweeper.n_trials=20, for example"
    return f"the study has no value: 0 of {number} trials succeeded; the train.log of each has the reason"


def importances(study: "Study", number: int) -> tuple[dict[str, float], str]:
    """Return the share of each setting in the variance of the value, as a random forest explains it.

    Optuna's fANOVA does not work with NumPy 2, its mean decrease of impurity does.

    Args:
        study: The study.
        number: Trials with a value.

    Returns:
        Setting -> share, the highest first; or none, and the reason.
    """
    from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances

    if number < FEWEST:
        return {}, f"; no importance with fewer than {FEWEST} trials"
    try:
        shares = get_param_importances(study, evaluator=MeanDecreaseImpurityImportanceEvaluator(seed=0))
    except ImportError:
        return {}, "; for their importance: pip install scikit-learn"
    except ValueError as error:  # the ranges of a setting differ between trials
        return {}, f"; no importance: {error}"
    return (dict(shares), "") if len(shares) > 1 else ({}, "")


def _draw_history(axes: "Axes", trials: Sequence["FrozenTrial"], done: Sequence["FrozenTrial"], low: float) -> None:
    """Draw the value of each trial, and the best so far as a line; failed trials are crosses on the lower edge."""
    numbers = [trial.number for trial in done]
    best = list(itertools.accumulate((trial.value for trial in done), max))
    axes.step([*numbers, trials[-1].number], [*best, best[-1]], where="post", color=BEST, label=f"best {best[-1]:.2f}")
    _scatter(axes, numbers, done, low, s=18, color=VALUE, zorder=3)
    if failed := sorted({trial.number for trial in trials}.difference(numbers)):
        across = axes.get_xaxis_transform()
        axes.scatter(failed, [0.02] * len(failed), marker="x", s=18, color=FAILED, transform=across, label="failed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", xlim=(-0.5, trials[-1].number + 0.5))
    axes.set_title("trials", loc="left", fontweight="bold")
    axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")


def _draw_importances(axes: "Axes", shares: dict[str, float]) -> None:
    bars = axes.barh(list(shares), list(shares.values()), color=VALUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(False, axis="y")
    axes.set_title("importance: share of the variance", loc="left", fontweight="bold")


def _draw_slice(axes: "Axes", trials: Sequence["FrozenTrial"], name: str, low: float) -> None:
    """Draw the values of trials over one setting, later trials darker, the best in another colour."""
    best = max(trials, key=lambda trial: trial.value)
    shades = {"vmin": -len(trials), "vmax": trials[-1].number, "cmap": "Blues", "edgecolors": "0.5", "linewidths": 0.5}
    settings: list[Any] = [trial.params[name] for trial in trials]
    ranges = [trial.distributions[name] for trial in trials]
    if choices := [str(choice) for one in ranges for choice in getattr(one, "choices", ())]:
        shown = list(dict.fromkeys([*choices, *map(str, settings)]))
        settings = [shown.index(str(value)) for value in settings]
        axes.set_xticks(range(len(shown)), shown, rotation=30 if sum(map(len, shown)) > 30 else 0)
        axes.set_xlim(-0.5, len(shown) - 0.5)
    elif any("Log" in type(one).__name__ for one in ranges):
        axes.set_xscale("log")
    _scatter(axes, settings, trials, low, c=[trial.number for trial in trials], s=24, **shades)
    axes.scatter(settings[trials.index(best)], best.value, s=40, color=BEST, zorder=3)
    axes.set_title(name, loc="left", fontweight="bold")


def _scatter(axes: "Axes", across: Sequence[float], trials: Sequence["FrozenTrial"], low: float, **how: Any) -> None:
    """Draw the values of trials; those below `low` are triangles there."""
    for marker, chosen in (("o", [t.value >= low for t in trials]), ("v", [t.value < low for t in trials])):
        points = [(x, max(trial.value, low)) for x, trial, c in zip(across, trials, chosen, strict=True) if c]
        shade = {"c": list(itertools.compress(how["c"], chosen))} if "c" in how else {}
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, **how | shade)

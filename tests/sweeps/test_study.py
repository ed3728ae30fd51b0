"""study.png: a study's trials, importance and slices."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

pytestmark = pytest.mark.filterwarnings("ignore:.* is experimental")
optuna = pytest.importorskip("optuna", reason="search=optuna needs hydra-optuna-sweeper")

from optuna.distributions import CategoricalDistribution, LogUniformDistribution  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

from sr_lightning.sweeps.study_plot import draw_study, importances  # noqa: E402

RANGES = {"optimizer.lr": LogUniformDistribution(1e-4, 1e-2), "loss": CategoricalDistribution(["l1", "mse"])}


def study_of(*values):
    """A study of trials with these values, None for a failed one; `loss` decides, `optimizer.lr` repeats."""
    study = optuna.create_study(direction="maximize")
    for i, value in enumerate(values):
        params = {
            "optimizer.lr": 1e-4 * 10 ** (i % 3),
            "loss": "mse" if value == max(filter(None, values), default=0) else "l1",
        }
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=RANGES))
    return study


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw a study; return the line on it, and the axes by title."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, path, **how: figures.append(f) or save(f, path, **how))

    def draw(study):
        line = draw_study(tmp_path / "study.png", study)
        axes = [axes for figure in figures for axes in figure.axes if axes.get_visible()]
        return line, {one.get_title(loc="left"): one for one in axes}

    return draw


def test_picture_has_the_trials_the_importance_and_a_slice_of_each_setting(drawn, tmp_path):
    line, axes = drawn(study_of(30.0, 31.0, None, 30.5, 32.0, 31.5, None))
    assert line == f"{tmp_path / 'study.png'}: the trials, the importance and the slices of the settings"
    assert list(axes) == ["trials", "importance: share of the variance", "loss", "optimizer.lr"]
    best, failed = axes["trials"].lines[0], axes["trials"].collections[-1]
    assert best.get_xydata().tolist() == [[0, 30], [1, 31], [3, 31], [4, 32], [5, 32], [6, 32]]
    assert failed.get_offsets()[:, 0].tolist() == [2, 6]
    assert [text.get_text() for text in axes["loss"].get_xticklabels()] == ["l1", "mse"]
    assert axes["loss"].collections[-1].get_offsets().tolist() == [[1, 32]]  # the best
    assert (axes["optimizer.lr"].get_xscale(), axes["loss"].get_xscale()) == ("log", "linear")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_importance_is_that_of_the_setting_that_decides(drawn):
    shares, reason = importances(study_of(30.0, 30.0, 32.0, 30.0, 30.0, 32.0, 30.0, 32.0), 8)
    assert (list(shares), reason) == (["loss", "optimizer.lr"], "")
    assert shares["loss"] > 0.9 and sum(shares.values()) == pytest.approx(1)


def test_values_far_below_are_triangles_on_the_lower_edge(drawn):
    axes = drawn(study_of(*[31.0, 31.2, 31.4, 31.6, 31.8, 32.0, 31.9, 5.0]))[1]["trials"]
    points, below = axes.collections
    low = axes.get_ylim()[0]
    assert len(points.get_offsets()) == 7 and 29 < low < 31
    ((trial, height),) = below.get_offsets().tolist()
    assert trial == 7 and low < height < 31


@pytest.mark.parametrize("values", [(30.0,), (30.0, None), (30.0, 31.0, 30.0, 30.5)])
def test_few_trials_are_drawn_without_importance(drawn, values):
    line, axes = drawn(study_of(*values))
    assert line.endswith("the trials and the slices of the settings; no importance with fewer than 5 trials")
    assert list(axes) == ["trials", "loss", "optimizer.lr"]


def test_without_scikit_learn_the_importance_is_left_out(drawn, monkeypatch):
    class Missing:
        def check(self):
            raise ImportError("sklearn")

    monkeypatch.setattr("optuna.importance._mean_decrease_impurity._imports", Missing())
    line, axes = drawn(study_of(30.0, 31.0, 30.5, 32.0, 31.5))
    assert line.endswith("the slices of the settings; for their importance: pip install scikit-learn")
    assert list(axes) == ["trials", "loss", "optimizer.lr"]


@pytest.mark.parametrize(("values", "reason"), [((None, None), "0 of 2 trials succeeded"), ((), "has no trials")])
def test_study_without_a_value_is_not_drawn(tmp_path, values, reason):
    assert reason in draw_study(tmp_path / "study.png", study_of(*values))
    assert not list(Path(tmp_path).iterdir())

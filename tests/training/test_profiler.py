"""Profiles are written into the run's directory and change no bit."""

import pytest

from sr_lightning.checkpoints.checkpoint import read_checkpoint
from sr_lightning.errors import InputError
from sr_lightning.training.checks import check_settings
from tests.helpers import compose, differences, metrics_of, run
from tests.training.test_resume import ADVERSARIAL


@pytest.mark.parametrize(
    ("profiler", "settings"),
    [
        ("simple", []),
        pytest.param("pytorch", [*ADVERSARIAL, "max_steps=2"], marks=pytest.mark.slow),
    ],
)
def test_profile_is_written_and_named_and_the_run_is_the_same(command, tmp_path, profiler, settings):
    words = [*command, "num_comparisons=0", *settings]
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    if profiler == "simple":
        run(*words, f"hydra.run.dir={plain}")
    output = run(*words, f"trainer.profiler={profiler}", f"hydra.run.dir={profiled}").stdout
    assert f"profile  {profiler}, written at the end" in output
    assert "Profile" in (profiled / "fit-profile.txt").read_text()
    files = sorted(path.name for path in profiled.glob("fit-profile*"))
    assert len(files) == (2 if profiler == "pytorch" else 1)
    assert ", ".join(["results.csv", *files]) in output
    if profiler == "simple":
        one, two = (read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (plain, profiled))
        assert not list(differences(one, two, "state_dict"))
        assert metrics_of(plain) == metrics_of(profiled)


def test_unknown_profiler_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"trainer\.profiler=fast: choose null, or one of simple, advanced, pytorch"):
        check_settings(compose("trainer.profiler=fast"))

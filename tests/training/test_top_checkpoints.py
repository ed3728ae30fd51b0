"""The checkpoints of the highest PSNR, beside best.ckpt and last.ckpt."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sr_lightning.callbacks import TopCheckpoints
from sr_lightning.callbacks.checkpoints import step_and_psnr
from sr_lightning.checkpoints.checkpoint import load_network, read_checkpoint
from tests.helpers import differences, rows_of, run
from tests.kill_chains import differences_of_runs
from tests.training.test_resume import stop_in_step

KEEP = ["save_top_k=3", "val_every=10", "save_every=25", "max_steps=100", "num_comparisons=0"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("top") / "run"
    run(*command, *KEEP, f"hydra.run.dir={run_dir}")
    return run_dir


def test_files_are_those_of_the_highest_psnr_and_name_it_with_its_step(whole):
    validated = [
        (float(row["val/psnr"]), int(row["step"])) for row in rows_of(whole / "metrics.csv") if row["val/psnr"]
    ]
    best = sorted(validated, reverse=True)[:3]
    expected = sorted(f"step_{step:07d}_psnr_{psnr:.4f}.ckpt" for psnr, step in best)
    assert names(whole / "checkpoints") == expected
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", *expected}
    for path in (whole / "checkpoints").glob("step_*"):
        assert load_network(path).step == step_and_psnr(path)[0]
        if step_and_psnr(path)[0] == best[0][1]:
            one, other = (read_checkpoint(file)["state_dict"] for file in (path, whole / "checkpoints" / "best.ckpt"))
            assert not list(differences(one, other, "state_dict"))


def test_killed_and_resumed_run_keeps_the_same_files(command, whole, tmp_path):
    run_dir, killed = tmp_path / "run", tmp_path / "run" / "checkpoints"
    words = [*command, *KEEP, f"hydra.run.dir={run_dir}"]
    assert stop_in_step(words, run_dir, 65) == 50
    (killed / "step_0000090_psnr_99.0000.ckpt").write_bytes(b"of a step that is trained again")
    run("train.py", f"resume={run_dir}")
    assert names(killed) == names(whole / "checkpoints")
    assert not list(differences_of_runs(whole, run_dir))


def test_worse_files_are_removed_only_after_the_better_one_is_complete(tmp_path):
    def save(path):
        if path.name in refused:
            raise OSError("disk full")
        path.touch()

    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda decision: decision),
        save_checkpoint=save,
    )
    callback, refused = TopCheckpoints(tmp_path, 2), {"step_0000040_psnr_33.0000.ckpt"}

    def validate(step, psnr):
        callback.on_validation_end(trainer, SimpleNamespace(batches_done=step, latest={"val/psnr": psnr}))

    for step, psnr in ((10, 9.5), (20, 32.0), (30, 32.0)):
        validate(step, psnr)
    kept = ["step_0000020_psnr_32.0000.ckpt", "step_0000030_psnr_32.0000.ckpt"]
    assert names(tmp_path) == kept
    with pytest.raises(OSError, match="full"):
        validate(40, 33.0)
    assert names(tmp_path) == kept
    validate(50, 32.0)  # equal: the earlier ones stay
    assert names(tmp_path) == kept
    validate(60, 34.0)
    assert names(tmp_path) == [kept[0], "step_0000060_psnr_34.0000.ckpt"]
    callback.on_train_start(trainer, SimpleNamespace(batches_done=50))
    assert names(tmp_path) == kept[:1]

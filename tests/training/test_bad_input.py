"""Wrong images and settings cause one error that names them all, before the first step."""

import shutil

import numpy as np
import pytest
from PIL import Image

from sr_lightning.errors import InputError
from sr_lightning.metrics import extra
from sr_lightning.training import checks, train
from sr_lightning.training.checks import check_device, check_settings, lacks_gpu, may_be_null
from tests.helpers import compose, run, run_in_new_interpreter, slow_except


@pytest.fixture
def folder(pictures, tmp_path):
    """A copy of the small pictures to modify."""
    return shutil.copytree(pictures, tmp_path / "mine")


def refused(command, *words) -> str:
    """Run a training that must end with a plain error before the first step; return its output."""
    done = run(*command, *words, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    assert "step 10/" not in output
    return output


def test_every_unreadable_image_is_named(command, folder):
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "1.png").write_text("<html>quota exceeded</html>")
    output = refused(command, f"data.hr={folder}")
    assert "0.png" in output
    assert "1.png" in output
    assert "2.png" not in output


def test_images_smaller_than_a_patch_are_named_with_a_patch_size_that_fits(command, folder):
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    Image.new("RGB", (12, 40)).save(folder / "thin.png")
    output = refused(command, f"data.hr={folder}", "data.patch_size=16", "data.val_hr=" + str(folder))
    assert "tiny: LR of 10x10" in output
    assert "thin: LR of 20x6" in output
    assert "patch_size to 6 or less" in output


def test_validation_images_of_one_colour_are_refused(command, folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for name in ("black", "grey"):
        Image.new("RGB", (40, 48), name).save(tmp_path / "flat" / f"{name}.png")
    output = refused(command, f"data.hr={folder}", f"data.val_hr={tmp_path / 'flat'}")
    assert "validation images: bicubic reproduces all 2 images, so nothing can be scored" in output


def test_unpaired_hr_and_lr_are_named(command, folder, tmp_path):
    lr = tmp_path / "lr"
    lr.mkdir()
    for i in range(1, 6):
        Image.new("RGB", (40, 48)).save(lr / f"{i}x2.png")
    Image.new("RGB", (40, 48)).save(lr / "9x2.png")
    output = refused(command, f"data.hr={folder}", f"data.lr={lr}")
    assert "0.png: HR without LR" in output
    assert "9x2.png: LR without HR" in output


@pytest.mark.slow
def test_lr_of_another_scale_is_named(command, folder, tmp_path):
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in folder.iterdir():
        Image.new("RGB", (20, 24)).save(lr / path.name)
    assert "24x20, but HR of 96x80 at scale 2 has LR of 48x40" in refused(command, f"data.hr={folder}", f"data.lr={lr}")


WRONG_SETTINGS = [
    (["data.hr=nowhere"], "nowhere"),
    (["model=espnc"], "Could not find 'model/espnc'"),
    (["model.network.num_feature=[8]"], "Key 'num_feature' is not in struct"),
    (["data.residence=disk"], "choose auto, mmap, memory or device"),
    (["data.hr=null"], "data=folder needs data.hr=DIR, the folder of the HR images"),
    (["dry_run=true", "max_steps=null"], "invalid numbers: max_steps=null"),
    (["dry_run=true", "data.channel_shuffle=0.5"], "data.channel_shuffle=0.5: this network sees luma only"),
    (["max_steps=null"], "invalid numbers: max_steps=null (must be a whole number of at least 1)"),
    (["model.network.kernel_sizes=[3]"], "model.network: ESPCN needs odd kernel sizes, one more than num_features"),
    (
        ["model.scheduler._target_=torch.optim.lr_scheduler.StepLR"],
        "model.scheduler: StepLR.__init__() got an unexpected keyword argument 'total_steps'. Add it by ",
    ),
    (["+model.lr_factors.conv9=0.1"], "no parameter name begins with"),
    (["model.loss=null"], "model.loss=null: a network learns from a loss, such as"),
    (
        ["seed=-1", "max_steps=soon", "val_every=0"],
        "invalid numbers: seed=-1 (must be a whole number from 0 to 4294967295), "
        "max_steps=soon (must be a whole number of at least 1), val_every=0 (must be a whole number of at least 1)",
    ),
]


@pytest.mark.parametrize(("words", "message"), slow_except(WRONG_SETTINGS, WRONG_SETTINGS[-1]))
def test_wrong_setting_is_named(command, words, message):
    assert message in refused(command, *words)


def test_all_wrong_settings_are_named_at_once(command):
    wrong = {
        "measures=[sharpness]": "measures: unknown sharpness; give a list of spectrum, consistency, lpips, dists, fid",
        "data.batch_size=0": "batch_size=0",
        "data.val_fraction=abc": "fraction=abc: the share of images for validation must be between 0 and 1",
        "benchmarks=Set5": "benchmarks=Set5: give a list, such as benchmarks=[Set5]",
        "model.warm_start=5": "model.warm_start=5: there is no file or folder 5",
        "trainer.precision=foo": "trainer.precision=foo: choose auto, or one of 32-true, bf16-mixed",
        "compile=maybe": "compile=maybe: choose true, false, or null",
        "+trainer.max_epochs=3": "trainer.max_epochs: train.py sets it by max_steps; leave it out",
        "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1 (must be a number of at least 0, or null)",
        "+trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0 (must be a whole number of",
        "+trainer.callbacks=3": "trainer.callbacks=3: give a list of classes, such as [{_target_: ",
        "model.loss._target_=mine.Loss": "model.loss._target_=mine.Loss: there is no package mine; install it",
        "name=null": "name=null: give a text, such as",
        "cache_dir=2024": "cache_dir=2024: give a text, such as",
        "model.log_every=null": "model.log_every=null: give a number, such as",
        "model.network.num_features=null": "model.network.num_features=null: give a list, such as [",
        "comparisons_every=15": "(must be a multiple of val_every=10, or null)",
    }
    output = refused(command, *wrong)
    assert [message for message in wrong.values() if message not in output] == []


def test_limit_of_pixels_that_is_no_number_is_named_before_the_training(monkeypatch):
    monkeypatch.setenv("SR_MAX_PIXELS", "1e9")
    monkeypatch.setattr(checks, "overrides_of_command", list)  # earlier tests have run jobs of Hydra
    with pytest.raises(InputError, match=r"^SR_MAX_PIXELS=1e9: give a number of pixels"):
        check_settings(compose("run_dir=run", "choices={data: demo}"))


def test_null_for_a_value_that_is_needed_is_named_before_it_causes_another_error(short):
    output = refused(short, "data=t91", "data.train.hr=null", "data.val=null")
    assert "data.train.hr=null: give a text, such as" in output and "Traceback" not in output


@pytest.mark.parametrize(
    "key", ["model.scheduler", "model.ema", "data.augment", "trainer.profiler", "comparisons_every"]
)
def test_settings_of_which_null_is_a_value_may_be_null(key):
    assert may_be_null(compose(), key)


def test_resuming_a_missing_folder_creates_nothing(tmp_path):
    done = run("train.py", f"resume={tmp_path / 'nowhere'}", check=False)
    assert done.returncode == 1
    message = f"error: resume={tmp_path / 'nowhere'} is not the directory of a run: it has no config.yaml"
    assert message in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_data_module_of_the_user_needs_no_data_sets_in_the_config(command, tmp_path):
    words = ("data._target_=tests.training.own_data.OwnData", "max_steps=10", f"hydra.run.dir={tmp_path / 'run'}")
    run(*command, *words)
    assert (tmp_path / "run" / "results.csv").is_file()


MISSING = [("t91", "nowhere/T91"), ("div2k", "data.train.download=true")]


@pytest.mark.parametrize(("name", "way_out"), slow_except(MISSING, MISSING[0]))
def test_missing_data_set_says_how_to_get_it(short, name, way_out):
    assert way_out in refused(short, f"data={name}", "data_root=nowhere")


@pytest.mark.slow
def test_images_of_every_pixel_mode_train(command, tmp_path):
    """Gray, palette, 16 bit, opaque alpha and CMYK are read as documented."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    colour.convert("L").save(folder / "gray.png")
    colour.quantize().save(folder / "palette.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (64, 64), dtype=np.uint16)).save(folder / "deep.png")
    run(*command, f"data.hr={folder}", "max_steps=10", f"hydra.run.dir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "results.csv").is_file()


@pytest.mark.slow
def test_small_images_are_skipped_on_request(command, folder, tmp_path):
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    words = ("data.patch_size=16", f"data.val_hr={folder}", "data.skip_small=true", "max_steps=10")
    done = run(*command, f"data.hr={folder}", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert "1 of 7 training images are smaller than a patch" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmarks=[nothing]"], "no test set nothing"),
        (["data=val_photos"], "data=val_photos is a part that other options share"),
        (["+logger.notes=x"], "logger.notes=x: choose its logger first, such as logger=wandb"),
        (["model.optimizer.lr=abc"], "model.optimizer.lr=abc: give a number, such as 0.003"),
        (["model.ema=x"], "model.ema=x (must be a number, or null)"),
        (["data.augment=1"], "data.augment=1: give true or false"),
        (["model.optimizer=3"], "model.optimizer=3: give a group of settings"),
        (["+max_step=10"], "max_step: there is no such setting; did you mean max_steps?"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=-1"], "trainer.devices=-1 means all GPUs"),
    ],
)
def test_wrong_words_are_one_line(words, message, tmp_path):
    done = run("train.py", *words, f"hydra.run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert message in line
    assert not done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_words_are_named_before_torch_is_imported(tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["train.py", "model.optimizer.lr=abc", "benchmarks=[nothing]", "hydra.run.dir={tmp_path / "run"}"]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    done = run_in_new_interpreter("-c", code, check=False)
    assert done.returncode == 1
    assert "lr=abc: give a number" in done.stdout and "no test set nothing" in done.stdout
    assert not done.stderr


@pytest.mark.skipif(not lacks_gpu(), reason="this machine may have a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_missing_gpu_is_one_line(trainer):
    with pytest.raises(InputError, match="GPU"):
        check_device(compose(f"trainer={trainer}").trainer)


def test_missing_weights_of_a_measure_are_named_before_the_network_is_built(monkeypatch):
    def missing():
        raise InputError("fid needs weights")

    monkeypatch.setitem(extra.NETWORKS, "fid", missing)
    monkeypatch.setattr(train, "instantiate", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(InputError, match="fid needs weights"):
        train.train(compose("measures=[fid]", "run_dir=run"))

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import multiprocessing

from sr_lightning.errors import InputError
from sr_lightning.metrics.per_image import PerImage, Score
from sr_lightning.metrics.protocol import Protocol, score
from tests.oracles import blurred, photos_of, unit


def test_the_mean_counts_every_image_once_even_if_it_is_repeated():
    metric = PerImage(3)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2, 0]))
    metric.update(torch.tensor([6.0, 2.0, 2.0]), torch.tensor([1, 0, 0]))
    assert metric.compute().item() == 3.0
    assert metric.per_image().tolist() == [2.0, 6.0, 1.0]
    assert metric.compute().dtype == torch.float64


def test_missing_images_are_refused_with_their_number():
    metric = PerImage(5)
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([4, 0]))
    for function in (metric.compute, metric.per_image):
        with pytest.raises(InputError, match="3 of 5 images were not scored"):
            function()


def test_images_left_out_have_no_part_in_the_mean():
    metric = PerImage(3)
    metric.update(torch.tensor([1.0, float("inf"), 4.0]), torch.arange(3), torch.tensor([True, False, True]))
    assert metric.compute().item() == 2.5
    assert metric.images_left_out() == [1]
    assert metric.per_image().isnan().tolist() == [False, True, False]
    metric.reset()
    metric.update(torch.ones(3), torch.arange(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InputError, match="bicubic reproduces all 3 images, so nothing can be scored"):
        metric.compute()


def test_score_leaves_out_images_that_bicubic_reproduces_for_every_prediction():
    hr = unit(photos_of("astronaut", "camera", "gravel", size=48))
    hr[1] = 0
    metric = Score(3, 2, Protocol())
    for sr in (hr * 0.9, hr, hr + 0.1):
        metric.update(sr, hr, torch.arange(3))
        expected = score(sr[[0, 2]], hr[[0, 2]], 2, Protocol())
        assert {name: value.item() for name, value in metric.compute().items()} == {
            name: values.mean().item() for name, values in expected.items()
        }
        assert metric.images_left_out() == [1]
        metric.reset()


def test_an_index_out_of_range_and_unequal_shapes_are_refused():
    metric = PerImage(5)
    with pytest.raises(InputError, match=r"index \[5, -1\] is out of range for a data set of 5 images"):
        metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 0, -1]))
    with pytest.raises(InputError, match=r"values \(2,\) and index \(1,\) differ"):
        metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0]))


def test_reset_clears_all_images():
    metric = PerImage(2)
    metric.update(torch.ones(2), torch.arange(2))
    metric.reset()
    with pytest.raises(InputError, match="2 of 2"):
        metric.per_image()


@pytest.mark.parametrize("cast", [
    lambda module: module.half(),
    lambda module: module.bfloat16(),
    lambda module: module.to(torch.float32),
    lambda module: module.to("cpu", torch.float16),
    lambda module: module.metric.set_dtype(torch.float32),
])  # fmt: skip
def test_the_states_stay_float64_when_the_module_is_cast(cast):
    module = torch.nn.Module()
    module.metric = PerImage(2)
    value = 30.123456789012345
    module.metric.update(torch.tensor([value, value], dtype=torch.float64), torch.arange(2))
    cast(module)
    assert module.metric.total.dtype == module.metric.count.dtype == torch.float64
    assert module.metric.compute().item() == value
    module.metric.reset()
    assert module.metric.total.dtype == torch.float64


def test_the_states_move_to_another_device():
    assert PerImage(2).to("meta").total.device.type == "meta"
    assert Score(2, 2, Protocol()).to("meta")["ssim"].count.device.type == "meta"


def test_score_is_the_mean_of_the_functions():
    hr = photos_of("astronaut", "camera", "gravel", size=120)
    sr, hr = unit(blurred(hr)), unit(hr)
    metric = Score(3, 4, Protocol(), prefix="val/")
    metric.update(sr[1:], hr[1:], torch.tensor([1, 2]))
    metric.update(sr[:1], hr[:1], torch.tensor([0]))
    expected = score(sr, hr, 4, Protocol())
    assert {name: values.tolist() for name, values in metric.per_image().items()} == {
        f"val/{name}": values.tolist() for name, values in expected.items()
    }
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(
        {f"val/{name}": values.mean().item() for name, values in expected.items()}, abs=1e-12
    )


class Halver(pl.LightningModule):
    """Score images at half their brightness; log the metric itself, or its values."""

    def __init__(self, log_object: bool):
        super().__init__()
        self.log_object = log_object
        self.score = Score(5, 2, Protocol(), prefix="val/")

    def validation_step(self, batch, batch_idx):
        index, hr = batch
        self.score.update(hr / 2, hr, index)
        if self.log_object:
            self.log_dict(self.score)

    def on_validation_epoch_end(self):
        if not self.log_object:
            self.log_dict(self.score.compute())
            self.score.reset()


@pytest.mark.parametrize("log_object", [True, False])
def test_score_works_in_lightning_and_is_reset_for_each_validation(tmp_path, log_object):
    hr = torch.rand(5, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(list(enumerate(hr)), batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Halver(log_object)
    expected = {f"val/{name}": v.mean().item() for name, v in score(hr / 2, hr, 2, Protocol()).items()}
    for _ in range(2):
        result = trainer.validate(module, loader, verbose=False)[0]
        assert {name: float(value) for name, value in result.items()} == pytest.approx(expected, abs=1e-6)


VALUES = torch.tensor([30.1, 31.7, 28.3, 35.9, 27.2], dtype=torch.float64) / 3
SHARDS = {  # image indices of each of two processes
    "uneven": ([0, 2, 4], [1, 3]),
    "one process has none": ([0, 1, 2, 3, 4], []),
    "the sampler repeats one": ([0, 2, 4], [1, 3, 0]),
}


def score_shard(rank: int, folder: str) -> None:
    """Run one of two processes and save its results to a file."""
    warnings.filterwarnings("ignore", ".*before the ``update`` method.*")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for name, shards in SHARDS.items():
        metric = PerImage(5)
        for i in shards[rank]:
            metric.update(VALUES[[i]], torch.tensor([i]))
        results[name] = (metric.compute(), metric.per_image(), metric.count.clone())
    incomplete = PerImage(5)
    incomplete.update(VALUES[[rank]], torch.tensor([rank]))
    try:
        incomplete.compute()
    except InputError as error:
        results["incomplete"] = str(error)
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_mean_is_exact_on_two_processes(tmp_path):
    fastest = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.start_processes(score_shard, args=(str(tmp_path),), nprocs=2, start_method=fastest)
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        for name, shards in SHARDS.items():
            mean, per_image, count = results[name]
            assert mean.item() == pytest.approx(VALUES.mean().item(), abs=1e-12)
            torch.testing.assert_close(per_image, VALUES, rtol=0, atol=1e-12)
            # after compute the process is back to its own images
            assert count.tolist() == torch.bincount(torch.tensor(shards[rank], dtype=torch.long), minlength=5).tolist()
        assert results["incomplete"].startswith("3 of 5 images were not scored")

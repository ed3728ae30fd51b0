"""LightningDataModules: training batches by batch number, whole images for validation."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_lightning.data.augmentation import Augmentation, augment
from sr_lightning.data.findings import TRAINING, VALIDATION, quick_findings
from sr_lightning.data.lr_origin import MATLAB, origin
from sr_lightning.data.pair_images import Degradation
from sr_lightning.data.patches import DeviceGather, PatchSampler, gather
from sr_lightning.data.sources import Pair, folder_pairs
from sr_lightning.data.store import ImageStore, verify
from sr_lightning.degradations import Bicubic, RandomDegradation, sharpen
from sr_lightning.degradations.replayed import ReplayedDegradation
from sr_lightning.errors import InputError, raise_all
from sr_lightning.images.files import image_size
from sr_lightning.utils.messages import listing
from sr_lightning.utils.threads import in_threads

log = logging.getLogger(__name__)

# "lr" and "hr": images (N, 3, H, W); "real": hr before it was sharpened; "index": (N,) of validation images. Before
# `to_float`, also "draw": the patches to gather, "random_bits": the random bits by which a random degradation makes lr,
# and "augmentation": an AugmentationDraw.
Batch = dict[str, Any]

DEVICE_SHARE = 0.25  # of a GPU's free memory, for images where residence is auto


class BatchNumbers:
    """Sampler of the remaining batch numbers. Batch k depends on the seed and k only, so a run resumes at any batch."""

    def __init__(self, total: int) -> None:
        self.start, self.total = 0, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class ResumableLoader(DataLoader):
    """DataLoader whose position Lightning saves in the checkpoint. One item of the data set is one whole batch.

    The position is read from the trainer, not counted here: workers and prefetching run ahead of training.
    """

    def __init__(self, dataset: Dataset, total: int, trainer: pl.Trainer, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size=None, sampler=BatchNumbers(total), **kwargs)
        self.trainer = trainer

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the remaining batches; without workers not by torch's iterator, which costs 50 us a batch."""
        if self.num_workers:
            return super().__iter__()
        torch.empty((), dtype=torch.int64).random_()  # a seed, as torch's iterator draws: dropout stays as it was
        return map(self.dataset.__getitem__, self.sampler)

    def state_dict(self) -> dict[str, int]:
        return {"batch": self.trainer.fit_loop.epoch_loop.batch_progress.current.processed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.start = state["batch"]


def identity_collate(batch: Batch) -> Batch:
    """Return a whole batch unchanged; torch's default would convert the numpy arrays of a draw to tensors."""
    return batch


class TrainBatches(Dataset):
    """Data set whose item k is batch k of this process: uint8 patches, or only their positions if a device gathers.

    Args:
        store: The images.
        sampler: Selects the patches of batch k.
        on_device: Return the draw only; `DeviceGather` gathers the patches.
        degradation: Makes LR of each patch; None takes LR from the store.
        augmentation: Drawn for each patch, or None.
    """

    def __init__(
        self,
        store: ImageStore,
        sampler: PatchSampler,
        on_device: bool = False,
        degradation: RandomDegradation | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store, self.sampler, self.on_device, self.degradation = store, sampler, on_device, degradation
        self.augmentation = augmentation

    def __getitem__(self, batch_number: int) -> Batch:
        sampler = self.sampler
        place = sampler.seed, batch_number, sampler.batch_size
        augmentation = self.augmentation and self.augmentation.draw(*place, sampler.rank, sampler.world_size)
        rows = None if augmentation is None else augmentation.rows
        draw = sampler.draw(batch_number, rows)
        if self.on_device:
            batch = {"draw": draw}
        else:
            lr, hr = gather(self.store, draw, sampler.patch_size)
            batch = {"lr": lr, "hr": hr}
        if self.degradation is not None:
            mine = slice(sampler.rank, None, sampler.world_size) if rows is None else rows
            batch["random_bits"] = self.degradation.draw(*place)[mine]
        if augmentation is not None:
            batch["augmentation"] = augmentation
        return batch


class WholeImages(Dataset):
    """Data set whose item i is image i, uint8: lr (1, 3, h, w), hr (1, 3, H, W), index (1,)."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        lr, hr = (torch.from_numpy(image.copy())[None] for image in (self.store.lr(index), self.store.hr(index)))
        return {"lr": lr, "hr": hr, "index": torch.tensor([index])}


class SRDataModule(pl.LightningDataModule):
    """Training patches and validation images of one scale.

    Args:
        train: Images to train on.
        val: Images to validate on.
        scale: The factor.
        degradation: Makes LR of whole HR images without an LR file. A random degradation makes new LR of every training
            patch, and LR of the whole validation images; LR files are then ignored.
        patch_size: Side of a training patch in LR pixels.
        batch_size: Patches per step over all processes; a multiple of their number.
        max_steps: Batches of the whole training.
        seed: Seeds the drawing of patches.
        augment: Draw flips and rotations.
        cutblur, mixup, channel_shuffle: Probabilities of further augmentations, see `augmentation.Augmentation`.
        sharpen_hr: Weight of the unsharp masking of the HR patches (see `degradations.sharpen`), of which a random
            degradation makes LR; a discriminator sees them unsharpened. None: no sharpening.
        skip_small: Leave out training images that are smaller than a patch, with a line in the log; otherwise they are
            an error.
        limit: Part of the images of both sets that is used, of the first ones, at least one; None: all.
        residence: Place of the decoded images: "mmap" (a file that all processes share), "memory", "device" (memory of
            the GPU), or "auto": device if there is a GPU and they take at most a quarter of its free memory, else mmap.
        num_workers: Processes that gather batches; 0 gathers in the training process, which is faster for images in
            memory.
        cache_dir: Folder of the decoded images.
    """

    def __init__(
        self,
        train: Sequence[Pair],
        val: Sequence[Pair],
        *,
        scale: int,
        degradation: Degradation,
        patch_size: int,
        batch_size: int,
        max_steps: int,
        seed: int,
        cache_dir: str | Path,
        augment: bool = True,
        cutblur: float | None = None,
        mixup: float | None = None,
        channel_shuffle: float | None = None,
        sharpen_hr: float | None = None,
        skip_small: bool = False,
        limit: float | None = None,
        residence: str = "auto",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if limit is not None and not 0 < limit <= 1:
            raise InputError(f"data.limit={limit}: give a part of the images above 0 and up to 1, such as 0.1, or null")
        counts = [len(pairs) if limit is None else math.ceil(limit * len(pairs)) for pairs in (train, val)]
        self.train, self.val, self.skip_small = list(train)[: counts[0]], list(val)[: counts[1]], skip_small
        self.scale, self.degradation = scale, degradation
        self.random_degradation = degradation if isinstance(degradation, RandomDegradation) else None
        if self.random_degradation is not None:
            self._leave_out_lr_files()
        self.patch_size, self.batch_size = patch_size, batch_size
        self.max_steps, self.seed, self.augment = max_steps, seed, augment
        self.cache_dir = Path(cache_dir).expanduser()
        self.residence, self.num_workers = residence, num_workers
        self.augmentation = Augmentation(cutblur, mixup, channel_shuffle) or None
        if mixup and batch_size < 2:
            raise InputError(f"data.mixup={mixup} mixes patches of a batch: set data.batch_size to 2 or more")
        if sharpen_hr is not None and not 0 < sharpen_hr < math.inf:
            raise InputError(f"data.sharpen_hr={sharpen_hr}: give a weight above 0, such as 0.5, or null")
        self.sharpen_hr = sharpen_hr
        if all(pair.lr is None for pair in self.train):
            self._check_cutblur(isinstance(degradation, Bicubic))
        if residence not in ("auto", "mmap", "memory", "device"):
            raise InputError(f"data.residence={residence}: choose auto, mmap, memory or device")
        self.train_store: ImageStore | None = None
        self.val_store: ImageStore | None = None
        self.device_gather: DeviceGather | None = None
        self.replayed_degradation: ReplayedDegradation | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the stores of both sets. All processes decode images that are not cached yet, each a part."""
        if self.train_store is not None:
            return
        residences = ("memory" if self.residence == "memory" else "mmap", "mmap")
        stores: list[ImageStore] = []

        def open_store(pairs: Sequence[Pair], degradation: Degradation, residence: str) -> None:
            stores.append(ImageStore.open(pairs, self.scale, degradation, self.cache_dir, residence))

        wanted = zip(self._wanted_stores(), residences, strict=True)
        raise_all(*(partial(open_store, *images, residence) for images, residence in wanted))
        stores[0].check_patch_size(self.patch_size)
        files = (i for i, pair in enumerate(self.train) if pair.lr is not None)
        if self.augmentation and (first := next(files, None)) is not None:
            self._check_cutblur(origin(stores[0].hr(first), stores[0].lr(first), self.scale) in MATLAB)
        self.train_store, self.val_store = stores
        self._warn()

    def _check_cutblur(self, lr_is_bicubic: bool) -> None:
        if self.augmentation and self.augmentation.cutblur and lr_is_bicubic:
            raise InputError(
                f"data.cutblur={self.augmentation.cutblur} replaces a part of LR by bicubically downscaled HR, which "
                "the LR of these training images is already: choose a degradation such as degradation=blur_noise_jpeg, "
                "or LR files of another kind, or data.cutblur=null"
            )

    @rank_zero_only
    def _warn(self) -> None:
        """Log what is suspicious about the images and quick to find."""
        sets = {TRAINING: (self.train_store, self.train), VALIDATION: (self.val_store, self.val)}
        if findings := quick_findings(sets):
            shown = [f"{finding.image}: {finding.text} ({finding.place})" for finding in findings]
            log.warning("suspicious images; `python -m sr_lightning.check` examines all:%s", listing(shown))

    def _wanted_stores(self) -> list[tuple[list[Pair], Degradation]]:
        """Return images and degradation of the stores of training and validation."""
        if self.skip_small:
            self._skip_small()
        # A random degradation does not use the stored LR of training images. Bicubic LR costs little and lets all runs
        # share one store.
        lr_of_train = self.degradation if self.random_degradation is None else Bicubic()
        return [(self.train, lr_of_train), (self.val, self.degradation)]

    def verify_stores(self) -> list[bool]:
        """Return for training and validation whether the cached images are whole; damaged ones are removed."""
        stores = self._wanted_stores()
        return [verify(pairs, self.scale, degradation, self.cache_dir) for pairs, degradation in stores]

    def check_channels(self, num_channels: int) -> None:
        """Check that the augmentations fit a network of 1 or 3 channels.

        Raises:
            InputError: Colours are shuffled, and the network sees luma only.
        """
        shuffle = self.augmentation and self.augmentation.channel_shuffle
        if shuffle and num_channels == 1:
            raise InputError(
                f"data.channel_shuffle={shuffle}: this network sees luma only; set data.channel_shuffle=null, or "
                "model.network.num_channels=3"
            )

    def _leave_out_lr_files(self) -> None:
        if unused := sum(pair.lr is not None for pair in (*self.train, *self.val)):
            log.info("the LR files of %d images are ignored: LR is made by %s", unused, self.random_degradation.name)
        self.train, self.val = ([replace(pair, lr=None) for pair in pairs] for pairs in (self.train, self.val))

    def _skip_small(self) -> None:
        try:
            sizes = list(in_threads(image_size, [pair.hr for pair in self.train]))
        except InputError:  # opening the store names all unusable files
            return
        large = [min(size) // self.scale >= self.patch_size for size in sizes]
        if not all(large):
            log.info("%d of %d training images are smaller than a patch", large.count(False), len(large))
        self.train = [pair for pair, keep in zip(self.train, large, strict=True) if keep]

    def train_batches(self, rank: int = 0, world_size: int = 1, on_device: bool | None = None) -> TrainBatches:
        """Data set of the batches of process `rank` of `world_size`; `on_device`: by default if residence is device."""
        sampler = PatchSampler(
            self.train_store,
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            seed=self.seed,
            augment=self.augment,
            rank=rank,
            world_size=world_size,
        )
        on_device = self.residence == "device" if on_device is None else on_device
        return TrainBatches(self.train_store, sampler, on_device, self.random_degradation, self.augmentation)

    def train_dataloader(self) -> DataLoader:
        place = self.trainer.global_rank, self.trainer.world_size
        batches = self.train_batches(*place, on_device=self.fits_device() if self.residence == "auto" else None)
        return ResumableLoader(
            batches, self.max_steps, self.trainer, num_workers=self.num_workers, collate_fn=identity_collate
        )

    def fits_device(self) -> bool:
        """Return True if training runs on a GPU with enough free memory for the training images."""
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return len(self.train_store.pixels) <= DEVICE_SHARE * free

    def val_dataloader(self) -> DataLoader:
        images, rank, world_size = WholeImages(self.val_store), self.trainer.global_rank, self.trainer.world_size
        rounds = math.ceil(len(images) / world_size)  # equal on all processes; an image scored twice counts once
        mine = [(rank + world_size * i) % len(images) for i in range(rounds)]
        return DataLoader(images, batch_size=None, sampler=mine)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.to_float(batch)

    def to_float(self, batch: Batch) -> Batch:
        """Convert images from uint8 to [0, 1] on their device.

        A draw is gathered first; training patches are sharpened, degraded and augmented.
        """
        random_bits, augmentation = batch.get("random_bits"), batch.get("augmentation")
        if "draw" in batch:
            if self.device_gather is None:
                self.device_gather = DeviceGather(self.train_store, self.trainer.strategy.root_device)
            lr, hr = self.device_gather(batch["draw"], self.patch_size)
            batch = {"lr": lr, "hr": hr}
        images = {name: batch[name].float().mul_(1 / 255) for name in ("lr", "hr")}
        if self.sharpen_hr is not None and "index" not in batch:  # validation images stay
            images |= {"hr": sharpen(images["hr"], self.sharpen_hr), "real": images["hr"]}
        if random_bits is not None:
            images["lr"] = self._degrade(images["hr"], random_bits)
        if augmentation is not None:
            images = augment(images, augmentation)
        return images | {name: batch[name] for name in batch.keys() & {"index"}}

    def _degrade(self, hr: Tensor, random_bits: np.ndarray) -> Tensor:
        """Degrade training patches at random; replayed, if the training steps are."""
        record = getattr(self.trainer and self.trainer.lightning_module, "record", None)
        if record is None:
            return self.random_degradation.degrade(hr, self.scale, random_bits)
        if self.replayed_degradation is None:
            part = self.batch_size // self.trainer.world_size
            self.replayed_degradation = ReplayedDegradation(self.random_degradation, self.scale, record, part)
        return self.replayed_degradation(hr, random_bits)

    def teardown(self, stage: str) -> None:
        self.replayed_degradation = None  # its graph holds memory


class FolderDataModule(SRDataModule):
    """Images in the user's folders: one to train on, and another, or a part of the first, to validate on.

    Args:
        hr, lr, val_hr, val_lr, val_fraction, scale: As for `folder_pairs`.
        **settings: Arguments of SRDataModule.
    """

    def __init__(
        self,
        hr: str,
        lr: str | None = None,
        val_hr: str | None = None,
        val_lr: str | None = None,
        val_fraction: float = 0.1,
        *,
        scale: int,
        **settings: Any,
    ) -> None:
        train, val = folder_pairs(hr, lr, val_hr, val_lr, val_fraction, scale)
        super().__init__(train, val, scale=scale, **settings)

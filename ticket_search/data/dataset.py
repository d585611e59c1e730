"""A data set on one device: its splits, its normalization, and training batches as a function of (seed, iteration)."""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ticket_search.config.identity import derive_seed
from ticket_search.config.trajectory import AugmentSpec, DatasetSpec, NormalizeSpec
from ticket_search.data.arrays import Arrays, read_arrays
from ticket_search.errors import DataError

#: The usual normalization constants, for images scaled to [0, 1].
NORMALIZE = {
    "mnist": NormalizeSpec(mean=(0.1307,), std=(0.3081,)),
    "fashion_mnist": NormalizeSpec(mean=(0.2860,), std=(0.3530,)),
    "cifar10": NormalizeSpec(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
_EVALUATED_IMAGES = 1000
_EVALUATED_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Split:
    """A subset of the images.

    Attributes:
        images: ``[n, c, h, w]``, not normalized, uint8 or float32. Never write to it: other processes may share it.
        labels: ``[n]`` int64.
        rows: ``[m]`` int64, ascending: the rows of `images` that belong to the split; None means all.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images in the split."""
        return len(self.labels if self.rows is None else self.rows)

    def at(self, indices: Tensor) -> Tensor:
        """Convert indices within the split into row numbers of `images`."""
        return indices if self.rows is None else self.rows.index_select(0, indices)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set on one device, divided into splits.

    Attributes:
        train: the training images, without the validation images.
        validation: the images held out from training; only these may guide a search.
        test: the test images, used only to evaluate trained levels.
        classes: the number of classes.
        image_shape: ``(c, h, w)``.
        fingerprint: a digest (32 hexadecimal digits) of the data before splitting and normalization.
        normalize: the normalization constants in use: those of the specification, the usual ones for the data set, or
            constants computed from the training images.
        scale: ``[c, 1, 1]`` float32; an image ``x`` of a split is normalized as ``x * scale + shift``.
        shift: ``[c, 1, 1]`` float32.
        augment: the augmentation of training images.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    image_shape: tuple[int, int, int]
    fingerprint: str
    normalize: NormalizeSpec
    scale: Tensor
    shift: Tensor
    augment: AugmentSpec

    def iterations_per_epoch(self, batch_size: int) -> int:
        """Return the number of whole batches in the training split; a smaller last batch is dropped."""
        return len(self.train) // batch_size

    def stream(self, seed: int, batch_size: int) -> "TrainStream":
        """Return the training batches for a trajectory's seed."""
        return TrainStream(self, seed, batch_size)

    @property
    def evaluation_batch_size(self) -> int:
        """The number of images in an evaluation batch: at most 1,000, and at most 64 MiB as float32."""
        # A split's loss is summed batch by batch, so the batch size affects the last bits of the sum. The batch size
        # therefore depends on the image size alone, not on the machine.
        return max(1, min(_EVALUATED_IMAGES, _EVALUATED_BYTES // (4 * math.prod(self.image_shape))))

    def batches(
        self, split: Literal["validation", "test"], batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images of a split in order, normalized to float32 ``[b, c, h, w]``, with their labels ``[b]``.

        Args:
            split: the split to read.
            batch_size: the number of images per batch; None means `evaluation_batch_size`.
        """
        part = self.validation if split == "validation" else self.test
        batch_size = batch_size or self.evaluation_batch_size
        for start in range(0, len(part.labels), batch_size):
            chosen = slice(start, start + batch_size)
            # Do not multiply in place, because a slice of float images is a view of the split's memory.
            yield (part.images[chosen].float() * self.scale).add_(self.shift), part.labels[chosen]


class TrainStream:
    """Training batches as a pure function of (seed, iteration); the global generators are not used.

    The order and the augmentation of an epoch are drawn on the CPU, so that they are the same on every device, and
    then moved to the device. Only the current epoch's draws are kept; those of other epochs are repeated when needed.
    """

    def __init__(self, dataset: Dataset, seed: int, batch_size: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._batch_size = batch_size
        self._iterations_per_epoch = dataset.iterations_per_epoch(batch_size)
        if not self._iterations_per_epoch:
            raise DataError(
                f"a batch of {batch_size} images is larger than the training split of {len(dataset.train)} images"
            )
        self._epoch = -1
        self._order = self._offsets = self._flips = torch.empty(0)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the batch of one iteration.

        Args:
            iteration: the number of the iteration, from 0, counted over all epochs.

        Returns:
            The images, augmented and then normalized, ``[b, c, h, w]`` float32, and the labels, ``[b]`` int64.
        """
        part, dataset = self._part(iteration), self._dataset
        indices = self._order[part]
        # On the CPU, index_select takes a quarter of the time of images[indices]: 25 us for 128 MNIST images.
        images = dataset.train.images.index_select(0, indices)
        if dataset.augment.crop or dataset.augment.flip:
            images = crop_and_flip(images, dataset.augment.crop, self._offsets[part], self._flips[part])
        return images.float().mul_(dataset.scale).add_(dataset.shift), dataset.train.labels.index_select(0, indices)

    def rows(self, iteration: int) -> Tensor:
        """Return the row numbers, ``[b]`` int64, of one iteration's images in the training split's `Split.images`."""
        part = self._part(iteration)  # may replace the order
        return self._order[part]

    def _part(self, iteration: int) -> slice:
        """Draw the epoch of an iteration if needed, and return the iteration's part of the epoch."""
        epoch, step = divmod(iteration, self._iterations_per_epoch)
        if epoch != self._epoch:
            self._draw(epoch)
        return slice(step * self._batch_size, (step + 1) * self._batch_size)

    def _draw(self, epoch: int) -> None:
        train, augment = self._dataset.train, self._dataset.augment
        count, device = len(train), train.labels.device
        self._order = train.at(torch.randperm(count, generator=_generator(self._seed, "order", epoch)).to(device))
        if augment.crop or augment.flip:
            generator = _generator(self._seed, "augment", epoch)
            self._offsets = torch.randint(0, 2 * augment.crop + 1, (count, 2), generator=generator).to(device)
            self._flips = torch.randint(0, 1 + augment.flip, (count,), generator=generator).bool().to(device)
        self._epoch = epoch


def crop_and_flip(images: Tensor, crop: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad each image with zeros, crop it to its original size, and mirror it left to right if its flip is True.

    The padding is black, because the images are not normalized yet.

    Args:
        images: ``[b, c, h, w]``.
        crop: the width of the padding on each side, in pixels.
        offsets: ``[b, 2]`` int64 in 0..2*crop: the first row and column to keep; an offset of `crop` means no shift.
        flips: ``[b]`` bool: whether to mirror each image.
    """
    b, c, h, w = images.shape
    rows = offsets[:, :1] + torch.arange(h, device=images.device)
    columns = offsets[:, 1:] + torch.arange(w, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (crop, crop, crop, crop))
    # One gather over flattened pixels is the fastest of five variants on the CPU: 0.6 ms for 128 CIFAR-10 images.
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).reshape(b, 1, h * w).expand(b, c, h * w)
    return padded.reshape(b, c, -1).gather(2, pixels).reshape(images.shape)


def load_dataset(spec: DatasetSpec, data_dir: Path, device: torch.device | str = "cpu") -> Dataset:
    """Read a data set, split it and move it to a device; see `make_dataset`.

    Raises:
        DataError: see `read_arrays`.
    """
    return make_dataset(spec, read_arrays(spec, data_dir), device)


def make_dataset(spec: DatasetSpec, arrays: Arrays, device: torch.device | str = "cpu") -> Dataset:
    """Split a data set and move it to a device.

    On the CPU, the training and test images are not copied; they may be read-only memory shared with other processes.

    The validation images are the first `spec.validation` of ``RandomState(spec.split_seed).permutation(n)``, whose
    output numpy guarantees not to change; each split keeps the order of the data set. The splits do not depend on the
    trajectory's seed.
    """
    order = np.random.RandomState(spec.split_seed).permutation(len(arrays.train_images))
    held_out, kept = np.sort(order[: spec.validation]), np.sort(order[spec.validation :])
    channels, height, width = arrays.train_images.shape[1:]
    constants = spec.normalize or NORMALIZE.get(spec.name) or statistics(arrays.train_images[kept])
    scale, shift = affine(constants, arrays.train_images.dtype == np.uint8)
    dataset = Dataset(
        train=Split(_tensor(arrays.train_images), _tensor(arrays.train_labels), torch.from_numpy(kept)),
        validation=Split(_tensor(arrays.train_images[held_out]), _tensor(arrays.train_labels[held_out])),
        test=Split(_tensor(arrays.test_images), _tensor(arrays.test_labels)),
        classes=arrays.classes,
        image_shape=(channels, height, width),
        fingerprint=arrays.fingerprint,
        normalize=constants,
        scale=scale,
        shift=shift,
        augment=spec.augment or AugmentSpec(),
    )
    return _to(dataset, torch.device(device))


def statistics(images: NDArray[Any]) -> NormalizeSpec:
    """Return the mean and population std of each channel of ``[n, c, h, w]``, in float64; a std of 0 is replaced by 1.

    The statistics of uint8 images are those of the images scaled to [0, 1]. Float images are not rescaled.
    """
    if images.dtype == np.uint8:
        return _statistics_of_bytes(images)
    means, stds = [], []
    for channel in images.swapaxes(0, 1):
        mean = channel.mean(dtype=np.float64)
        # Sum in pieces, because a float64 copy of the whole channel would take twice the channel's memory.
        squares = sum(float(((x - mean) ** 2).sum()) for x in np.array_split(channel, len(channel) // 1024 + 1))
        means.append(float(mean))
        std = (squares / channel.size) ** 0.5
        # Compare the values too, because rounding can make the std of equal values slightly larger than 0.
        stds.append(std if std and channel.min() < channel.max() else 1.0)
    return NormalizeSpec(mean=tuple(means), std=tuple(stds))


def _statistics_of_bytes(images: NDArray[Any]) -> NormalizeSpec:
    """Compute the statistics from integer sums, so that every machine gets the same statistics and level keys."""
    means, stds = [], []
    for channel in images.swapaxes(0, 1):
        counts = np.bincount(channel.ravel(), minlength=256).tolist()
        total = sum(v * n for v, n in enumerate(counts))
        squares = sum(v * v * n for v, n in enumerate(counts))
        means.append(total / (255 * channel.size))
        stds.append(math.sqrt(channel.size * squares - total**2) / (255 * channel.size) or 1.0)
    return NormalizeSpec(mean=tuple(means), std=tuple(stds))


def affine(constants: NormalizeSpec, is_bytes: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift, ``[c, 1, 1]`` float32, such that ``x * scale + shift == (x / unit - mean) / std``.

    The unit is the value that is scaled to 1: 255 for bytes and 1 for floats.
    """
    mean, std = np.array(constants.mean), np.array(constants.std)
    scale, shift = 1 / (std * (255 if is_bytes else 1)), -mean / std
    return tuple(torch.from_numpy(v.astype(np.float32)).reshape(-1, 1, 1) for v in (scale, shift))  # type: ignore[return-value]


def _generator(seed: int, purpose: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        return torch.from_numpy(np.ascontiguousarray(array))


def _to(dataset: Dataset, device: torch.device) -> Dataset:
    def move(split: Split) -> Split:
        rows = None if split.rows is None else split.rows.to(device)
        return Split(split.images.to(device), split.labels.to(device), rows)

    return dataclasses.replace(
        dataset,
        train=move(dataset.train),
        validation=move(dataset.validation),
        test=move(dataset.test),
        scale=dataset.scale.to(device),
        shift=dataset.shift.to(device),
    )

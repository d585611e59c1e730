"""Read all images and labels of a data set into numpy arrays. Importing this module does not import torch."""

import hashlib
import importlib.resources
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ticket_search.config.imports import load_function, source_digest
from ticket_search.config.trajectory import DatasetSpec
from ticket_search.config.user_error import one_line
from ticket_search.data.idx import FILES, find_idx, read_idx
from ticket_search.data.parquet import LAYOUT, find_shards, read_shards
from ticket_search.errors import DataError, quoted

Splits = Mapping[str, tuple[Any, Any]]
_IDX_CLASSES = {"mnist": 10, "fashion_mnist": 10}
_SHOWN = 5
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """All images and labels of a data set, before splitting and normalization.

    Attributes:
        train_images: ``[n, c, h, w]``, uint8 (0 to 255) or float32 (not rescaled).
        train_labels: ``[n]`` int64, starting at 0.
        test_images: in the same format as the training images.
        test_labels: in the same format as the training labels.
        classes: the largest label + 1.
        source: a digest of the user's code that produced the arrays; "" for data sets of this package.
    """

    train_images: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_images: NDArray[Any]
    test_labels: NDArray[np.int64]
    classes: int
    source: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """A digest (32 hexadecimal digits) of the arrays' content, shapes and types, and of the user's source code."""
        sha = hashlib.sha256(self.source.encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            sha.update(f"|{array.dtype.name}{list(array.shape)}".encode())
            sha.update(np.ascontiguousarray(array).data.cast("B"))
        return sha.hexdigest()[:32]

    @property
    def size(self) -> int:
        """The size of all arrays in bytes."""
        return sum(a.nbytes for a in (self.train_images, self.train_labels, self.test_images, self.test_labels))


def read_arrays(spec: DatasetSpec, data_dir: Path) -> Arrays:
    """Read a data set.

    Args:
        spec: the data set's specification; `split_seed` and `augment` are ignored.
        data_dir: the folder that contains the data sets, unless the specification has an absolute path.

    Raises:
        DataError: the data set is missing or unreadable, does not have the shapes described in `Arrays`, is too small
            for `spec.validation`, or has a different number of channels than `spec.normalize`.
        SpecError: a user's function cannot be imported.
    """
    arrays = READERS.get(spec.name, _user)(spec, data_dir)
    check_fits(spec, arrays)
    return arrays


def check_fits(spec: DatasetSpec, arrays: Arrays) -> None:
    """Check that the split and the normalization fit the data.

    Raises:
        DataError: something does not fit; the message quotes it and says what would fit.
    """
    images = len(arrays.train_images)
    if spec.validation >= images:
        raise DataError(
            f"dataset.validation: {spec.validation} leaves none of the {images} training images of {spec.name!r}; "
            f"give at most {images - 1}"
        )
    channels = arrays.train_images.shape[1]
    if spec.normalize is not None and len(spec.normalize.mean) != channels:
        raise DataError(
            f"dataset.normalize: mean {list(spec.normalize.mean)} and std {list(spec.normalize.std)} do not fit the "
            f"{channels} channel{'' if channels == 1 else 's'} of {spec.name!r}; give one mean and one std per channel"
        )


def label_notices(spec: DatasetSpec, arrays: Arrays) -> tuple[str, ...]:
    """Return warnings about valid but probably mistaken labels: one line per kind of mistake, with its remedy."""
    trained, tested = np.unique(arrays.train_labels), np.unique(arrays.test_labels)
    untrained = np.setdiff1d(tested, trained)
    notices = []
    if len(untrained):
        images = int(np.isin(arrays.test_labels, untrained).sum())
        notices.append(
            f"dataset {spec.name!r}: {images} of its {len(arrays.test_labels)} test images have labels that no "
            f"training image has ({_some(untrained)}) and will count as wrong; move some of them into the training "
            "set, or drop them"
        )
    empty = arrays.classes - len(np.union1d(trained, tested))
    if empty:
        notices.append(
            f"dataset {spec.name!r}: the largest label is {arrays.classes - 1}, so the network has {arrays.classes} "
            f"outputs, but {empty} of these classes have no image; number the classes from 0 without gaps"
        )
    if spec.name in _IDX_CLASSES and arrays.classes > _IDX_CLASSES[spec.name]:
        notices.append(
            f"dataset {spec.name!r}: the largest label is {arrays.classes - 1}, but {spec.name} has "
            f"{_IDX_CLASSES[spec.name]} classes; download the files again, unless they are meant to be another data set"
        )
    return tuple(notices)


def _some(values: NDArray[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + ", ..." * (len(values) > _SHOWN)


def _digits(_spec: DatasetSpec, _data_dir: Path) -> Arrays:
    raw = importlib.resources.files("ticket_search.data").joinpath("digits.npz").read_bytes()
    with np.load(BytesIO(raw)) as file:
        return _checked("digits", {s: (file[f"{s}_images"], file[f"{s}_labels"]) for s in ("train", "test")})


def _idx(folder: str, torchvision_name: str) -> Callable[[DatasetSpec, Path], Arrays]:
    def read(spec: DatasetSpec, data_dir: Path) -> Arrays:
        places = [data_dir / folder, data_dir]
        paths = _first_idx(places)
        if paths is None and spec.download:
            _torchvision(spec, torchvision_name, data_dir, train=True)
            paths = _first_idx(places)
        if paths is None:
            names = ", ".join(name for name, _ in FILES)
            looked = " nor ".join(repr(str(place)) for place in places)
            raise DataError(
                f"dataset {spec.name!r} not found: neither {looked} contains {names} (each plain or .gz); "
                "set `--data-dir` to their folder, or `dataset.download: true` to download them"
            )
        arrays = [read_idx(path, n) for path, (_, n) in zip(paths, FILES, strict=True)]
        return _checked(spec.name, {"train": (arrays[0], arrays[1]), "test": (arrays[2], arrays[3])})

    return read


def _first_idx(places: list[Path]) -> list[Path] | None:
    return next((paths for paths in map(find_idx, places) if paths), None)


def _cifar10(spec: DatasetSpec, data_dir: Path) -> Arrays:
    splits = {s: _torchvision(spec, "CIFAR10", data_dir, train=s == "train") for s in ("train", "test")}
    return _checked(spec.name, {s: (d.data.transpose(0, 3, 1, 2), d.targets) for s, d in splits.items()})


def _torchvision(spec: DatasetSpec, name: str, data_dir: Path, *, train: bool) -> Any:
    # Imported here because it loads torch, which most data sets do not need.
    import torchvision.datasets

    try:
        with warnings.catch_warnings():
            # CIFAR-10's pickles use an old dtype format that numpy >= 2.4 warns about.
            warnings.simplefilter("ignore")
            return getattr(torchvision.datasets, name)(root=str(data_dir), train=train, download=spec.download)
    except (OSError, RuntimeError) as error:
        failure = "cannot be downloaded to" if spec.download else "not found in"
        raise DataError(
            f"dataset {spec.name!r} {failure} {str(data_dir)!r}: {error}; "
            "set `--data-dir` to the folder where torchvision stored it, or `dataset.download: true` to download it"
        ) from error


def _parquet(spec: DatasetSpec, data_dir: Path) -> Arrays:
    folder = data_dir / (spec.path or "")
    try:
        shards = find_shards(folder)
    except (OSError, ValueError) as error:  # a name that is too long or contains a NUL
        raise DataError(
            f"dataset.path: cannot list {quoted(spec.path)}: {getattr(error, 'strerror', None) or error}"
        ) from None
    missing = [split for split, paths in shards.items() if not paths]
    if missing:
        state = f"contains no {' and no '.join(missing)} files" if folder.is_dir() else "is not a folder"
        raise DataError(
            f"dataset.path: {str(folder)!r} {state}; give a folder (absolute, or below `--data-dir`) with {LAYOUT}"
        )
    return _checked(str(folder), {split: read_shards(paths) for split, paths in shards.items()})


def _user(spec: DatasetSpec, _data_dir: Path) -> Arrays:
    function = load_function(spec.name)
    try:
        splits = function()
    except (Exception, SystemExit) as error:
        raise DataError(f"dataset {spec.name!r}: the function raised {one_line(error)}") from error
    return _checked(spec.name, splits, source_digest(spec.name))


#: Readers, keyed by the names in `ticket_search.config.trajectory.DATASETS`; any other name is a user's function.
READERS: dict[str, Callable[[DatasetSpec, Path], Arrays]] = {
    "digits": _digits,
    "mnist": _idx("MNIST/raw", "MNIST"),
    "fashion_mnist": _idx("FashionMNIST/raw", "FashionMNIST"),
    "cifar10": _cifar10,
    "parquet": _parquet,
}


def _checked(name: str, splits: Splits, source: str = "") -> Arrays:
    try:
        pairs = {split: (np.asarray(splits[split][0]), np.asarray(splits[split][1])) for split in ("train", "test")}
    except Exception as error:  # objects of user-defined classes may raise anything
        raise DataError(
            f'dataset {name!r} must be a dict {{"train": (images, labels), "test": (images, labels)}} of arrays: '
            f"{one_line(error)}"
        ) from error
    images = {split: _images(f"dataset {name!r}, {split}", pair[0]) for split, pair in pairs.items()}
    labels = {
        split: _labels(f"dataset {name!r}, {split}", pair[1], len(images[split])) for split, pair in pairs.items()
    }
    kinds = {split: (array.dtype.name, list(array.shape[1:])) for split, array in images.items()}
    if kinds["train"] != kinds["test"]:
        raise DataError(
            f"dataset {name!r}: training images are {kinds['train']}, but test images are {kinds['test']}; "
            "give both the same type and shape"
        )
    # Make the arrays contiguous, so that processes can share them without copying.
    images = {split: np.ascontiguousarray(array) for split, array in images.items()}
    return Arrays(
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        classes=_classes(name, labels),
        source=source,
    )


def _classes(name: str, labels: Mapping[str, NDArray[np.int64]]) -> int:
    classes = 1 + int(max(array.max() for array in labels.values()))
    images = sum(len(array) for array in labels.values())
    if classes > max(images, 1000):
        raise DataError(
            f"dataset {name!r}: label {classes - 1} is too large for {images} images; number the classes from 0"
        )
    train = labels["train"]
    if train.min() == train.max():
        raise DataError(
            f"dataset {name!r}: all {len(train)} training labels are {train[0]}; give training images of at least "
            "two classes"
        )
    if not np.isin(labels["test"], train).any():
        raise DataError(
            f"dataset {name!r}: no test label ({_some(np.unique(labels['test']))}) occurs among the training labels "
            f"({_some(np.unique(train))}); give training and test images of the same classes"
        )
    return classes


def _images(where: str, images: NDArray[Any]) -> NDArray[Any]:
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{where}: images have the shape {list(images.shape)}; give [n, h, w] or [n, c, h, w], with every "
            "dimension at least 1"
        )
    if images.ndim == 3:
        images = images[:, None]
    _, second, height, width = images.shape
    # If the last two axes have the same size, they are height and width: [n, 16, 4, 4] means 16 feature maps of 4x4.
    if width in _CHANNELS and second not in _CHANNELS and height != width:
        raise DataError(
            f"{where}: images have the shape {list(images.shape)}, whose last axis looks like channels; give "
            "[n, c, h, w], e.g. images.transpose(0, 3, 1, 2)"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where}: images are {images.dtype.name}; give uint8 (0 to 255) or floating point")
    with np.errstate(over="ignore"):
        images = images.astype(np.float32, copy=False)
    if not np.isfinite(images).all():
        raise DataError(f"{where}: images contain nan or infinity (as float32); give finite numbers")
    return images


def _labels(where: str, labels: NDArray[Any], images: int) -> NDArray[np.int64]:
    if labels.shape != (images,):
        raise DataError(
            f"{where}: labels have the shape {list(labels.shape)}; {images} images need the shape [{images}]"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels are {labels.dtype.name}; give integers, starting at 0")
    if labels.min() < 0:
        raise DataError(f"{where}: a label is {labels.min()}; number the classes from 0")
    if labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where}: a label is {labels.max()}; number the classes from 0 without gaps")
    return labels.astype(np.int64, copy=False)

"""Image classification, judged by accuracy."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_search.config.trajectory import FULLY_CONNECTED, DatasetSpec, ModelSpec, TrajectorySpec
from ticket_search.data import Arrays, check_fits, label_notices, read_arrays
from ticket_search.tasks.metric import Metric
from ticket_search.tasks.task import Fit, NetworkSize

if TYPE_CHECKING:
    from ticket_search.tasks.images import ImageTask

ACCURACY = Metric(name="accuracy", higher_is_better=True, unit="fraction of the images")


class Classification:
    """The `TaskKind` named ``classification``; the task itself is `images.ImageTask`."""

    name = "classification"
    metric = ACCURACY

    def read(self, dataset: DatasetSpec, data_dir: Path) -> Arrays:
        """Read the images and labels; see `read_arrays`."""
        return read_arrays(dataset, data_dir)

    def check(self, trajectory: TrajectorySpec, source: Arrays) -> Fit:
        """Check that the split, normalization and network fit the images."""
        dataset = trajectory.dataset
        check_fits(dataset, source)
        inputs = inputs_of(source)
        return Fit(
            training_examples=len(source.train_labels) - dataset.validation,
            inputs=inputs,
            size=_network_size(trajectory.model, inputs),
            notices=label_notices(dataset, source),
        )

    def on(self, dataset: DatasetSpec, source: Arrays, device: str) -> "ImageTask":
        """Return the task, with its images split and moved to the device."""
        from ticket_search.data.dataset import make_dataset
        from ticket_search.tasks.images import ImageTask

        return ImageTask(make_dataset(dataset, source, device))


def inputs_of(source: Arrays) -> Mapping[str, Any]:
    """Return the keyword arguments for building networks: ``image_shape``, which is (c, h, w), and ``classes``."""
    channels, height, width = source.train_images.shape[1:]
    return {"image_shape": (channels, height, width), "classes": source.classes}


def _network_size(model: ModelSpec, inputs: Mapping[str, Any]) -> NetworkSize:
    # A fully connected network accepts images of any size, and its weights can be counted without building it. Any
    # other network must be built, which requires torch. Importing torch takes 4 s.
    if FULLY_CONNECTED.fullmatch(model.name):
        hidden = [int(width) for width in model.name.split("_")[1:]]
        widths = [math.prod(inputs["image_shape"]), *hidden, inputs["classes"]]
        prunable = sum(a * b for a, b in itertools.pairwise(widths))
        return NetworkSize(values=prunable + sum(widths[1:]), prunable=prunable)
    from ticket_search.models import check as check_model

    values, prunable = check_model(model, **inputs)
    return NetworkSize(values=values, prunable=prunable)

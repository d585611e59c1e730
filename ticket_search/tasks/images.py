"""Classifying images, on a device: the cross-entropy that is lessened, and the accuracy that counts."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ticket_search.config.trajectory import DatasetSpec, ModelSpec, Precision, TrainingSpec
from ticket_search.data.dataset import Dataset, TrainStream
from ticket_search.models import build
from ticket_search.tasks.classification import ACCURACY
from ticket_search.tasks.metric import Metric
from ticket_search.tasks.precision import arithmetic
from ticket_search.tasks.task import Sample, Score, Session, Split, Task

#: On average, for the criteria that look at a batch; Wang et al. (2020) take ten of each.
_IMAGES_PER_CLASS = 10


class ImageTask(Task):
    """The task of a data set of images.

    Args:
        data: on the device to train on.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    @property
    def metric(self) -> Metric:
        """Accuracy, in [0, 1]."""
        return ACCURACY

    @property
    def fingerprint(self) -> str:
        """Of the images and labels as read."""
        return self.data.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.data.train.labels.device

    @property
    def inputs(self) -> Mapping[str, Any]:
        """``image_shape``, (c, h, w), and ``classes``."""
        return {"image_shape": self.data.image_shape, "classes": self.data.classes}

    @property
    def training_examples(self) -> int:
        """Training images, the validation images taken out."""
        return len(self.data.train)

    def resolved(self, dataset: DatasetSpec) -> DatasetSpec:
        """With the constants of normalisation that `null` stood for."""
        return dataset.model_copy(update={"normalize": self.data.normalize})

    def build(self, model: ModelSpec, seed: int, draw: int = 0) -> nn.Module:
        """A network for these images and classes."""
        return build(model, self.data.image_shape, self.data.classes, seed, draw)

    def session(self, seed: int, training: TrainingSpec, start: int) -> "ImageSession":
        """Batches in the order of the seed; a function of the iteration, so there is nothing to start."""
        del start
        return ImageSession(self.data.stream(seed, training.batch_size), training.precision)

    def score(self, network: nn.Module, split: Split, precision: Precision) -> Score:
        """Accuracy, and mean cross-entropy in nats, of a split; out of a GPU's memory, again in batches of half."""
        network.eval()
        batch_size = self.data.evaluation_batch_size
        while True:
            try:
                return self._score(network, split, precision, batch_size)
            except torch.cuda.OutOfMemoryError:
                if batch_size == 1:
                    raise
            # Outside the handler, whose traceback keeps the failed batch's activations.
            batch_size //= 2
            torch.cuda.empty_cache()

    def _score(self, network: nn.Module, split: Split, precision: Precision, batch_size: int) -> Score:
        device = next(network.parameters()).device
        loss_sum = correct = torch.zeros((), device=device)
        images_seen = 0
        with torch.no_grad():
            for images, labels in self.data.batches(split, batch_size):
                with arithmetic(precision, device):
                    logits = network(images)
                logits = logits.float()
                loss_sum = loss_sum + cross_entropy(logits, labels, reduction="sum")
                correct = correct + (logits.argmax(1) == labels).sum()
                images_seen += len(labels)
        # Only here is the device waited for.
        return Score(value=float(correct) / images_seen, loss=float(loss_sum) / images_seen)

    def sample(self, seed: int, training: TrainingSpec, start: int) -> "ImageSample":
        """The training batches from an iteration on, until there are ten images a class on average."""
        stream = self.data.stream(seed, training.batch_size)
        count = math.ceil(_IMAGES_PER_CLASS * self.data.classes / training.batch_size)
        batches = [stream.batch(start + i) for i in range(count)]
        return ImageSample(torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]))

    def example(self) -> Tensor:
        """Two black images."""
        return torch.zeros(2, *self.data.image_shape, device=self.device)

    def error(self, value: float) -> float:
        """The fraction of the images that is classified wrongly."""
        return 1 - value


class ImageSession(Session):
    """A training's batches.

    Args:
        stream: of the run's seed.
        precision: of the forward passes.
    """

    def __init__(self, stream: TrainStream, precision: Precision) -> None:
        self._stream = stream
        self._precision = precision

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images, float32 [b, c, h, w], and labels, int64 [b], of an iteration."""
        return self._stream.batch(iteration)

    def loss(self, network: nn.Module, iteration: int) -> Tensor:
        """The mean cross-entropy of the iteration's batch, in nats."""
        images, labels = self._stream.batch(iteration)
        with arithmetic(self._precision, images.device):
            logits = network(images)
        return image_loss(logits, labels)


def image_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a batch, in nats, in float32 whatever the forward pass was in."""
    return cross_entropy(logits.float(), labels)


class ImageSample(Sample):
    """Some training images.

    Args:
        images: normalised, float32 ``[b, c, h, w]``.
        labels: int64 ``[b]``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels

    def loss(self, network: nn.Module) -> Tensor:
        """The mean cross-entropy."""
        return cross_entropy(network(self._images), self._labels)

    def ones(self) -> Tensor:
        """An image of ones."""
        return torch.ones_like(self._images[:1], dtype=torch.float64)

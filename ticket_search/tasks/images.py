"""Image classification on a device: networks minimize the cross-entropy and are judged by accuracy."""

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

#: The average number of images per class in a sample for saliency criteria; Wang et al. (2020) use exactly ten.
_IMAGES_PER_CLASS = 10


class ImageTask(Task):
    """The task of classifying the images of a data set.

    Args:
        data: the data set, on the training device.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    @property
    def metric(self) -> Metric:
        """Accuracy, in [0, 1]."""
        return ACCURACY

    @property
    def fingerprint(self) -> str:
        """A digest of all images and labels, before splitting and normalization."""
        return self.data.fingerprint

    @property
    def device(self) -> torch.device:
        """The device on which the images are stored."""
        return self.data.train.labels.device

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Keyword arguments for building networks: ``image_shape``, which is (c, h, w), and ``classes``."""
        return {"image_shape": self.data.image_shape, "classes": self.data.classes}

    @property
    def training_examples(self) -> int:
        """The number of training images, not counting the validation images."""
        return len(self.data.train)

    def resolved(self, dataset: DatasetSpec) -> DatasetSpec:
        """Return the specification with the normalization constants filled in."""
        return dataset.model_copy(update={"normalize": self.data.normalize})

    def build(self, model: ModelSpec, seed: int, draw: int = 0) -> nn.Module:
        """Build a network for these images and classes."""
        return build(model, self.data.image_shape, self.data.classes, seed, draw)

    def session(self, seed: int, training: TrainingSpec, start: int) -> "ImageSession":
        """Return a session whose batches depend on the seed, but not on the iteration at which training starts."""
        del start
        return ImageSession(self.data.stream(seed, training.batch_size), training.precision)

    def score(self, network: nn.Module, split: Split, precision: Precision) -> Score:
        """Return the accuracy and the mean cross-entropy, in nats, on a split.

        If GPU memory runs out, halve the batch size until a batch fits.
        """
        network.eval()
        batch_size = self.data.evaluation_batch_size
        while True:
            try:
                return self._score(network, split, precision, batch_size)
            except torch.cuda.OutOfMemoryError:
                if batch_size == 1:
                    raise
            # Retry outside the except clause: the exception's traceback keeps the failed batch's activations alive.
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
        # The CPU waits for the device only here.
        return Score(value=float(correct) / images_seen, loss=float(loss_sum) / images_seen)

    def sample(self, seed: int, training: TrainingSpec, start: int) -> "ImageSample":
        """Return training batches from iteration `start` on, enough for ten images per class on average."""
        stream = self.data.stream(seed, training.batch_size)
        count = math.ceil(_IMAGES_PER_CLASS * self.data.classes / training.batch_size)
        batches = [stream.batch(start + i) for i in range(count)]
        return ImageSample(torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]))

    def example(self) -> Tensor:
        """Return two black images."""
        return torch.zeros(2, *self.data.image_shape, device=self.device)

    def error(self, value: float) -> float:
        """Return the fraction of images that are misclassified."""
        return 1 - value


class ImageSession(Session):
    """The batches of one training run.

    Args:
        stream: the training batches.
        precision: the precision of the forward passes.
    """

    def __init__(self, stream: TrainStream, precision: Precision) -> None:
        self._stream = stream
        self._precision = precision

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return an iteration's images, float32 ``[b, c, h, w]``, and labels, int64 ``[b]``."""
        return self._stream.batch(iteration)

    def rows(self, iteration: int) -> Tensor:
        """Return the row numbers, int64 ``[b]``, of an iteration's images in the training split's `Split.images`."""
        return self._stream.rows(iteration)

    def loss(self, network: nn.Module, iteration: int) -> Tensor:
        """Return the mean cross-entropy of the iteration's batch, in nats."""
        images, labels = self._stream.batch(iteration)
        with arithmetic(self._precision, images.device):
            logits = network(images)
        return image_loss(logits, labels)


def image_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats, computed in float32 whatever the type of the logits."""
    return cross_entropy(logits.float(), labels)


class ImageSample(Sample):
    """A sample of training images.

    Args:
        images: normalized, float32 ``[b, c, h, w]``.
        labels: int64 ``[b]``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels

    def loss(self, network: nn.Module) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return cross_entropy(network(self._images), self._labels)

    def ones(self) -> Tensor:
        """Return a float64 batch of one image whose pixels are all 1."""
        return torch.ones_like(self._images[:1], dtype=torch.float64)

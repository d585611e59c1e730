"""A complete user-defined task: predict one number from eight features. Its metric is the mean squared error.

With this folder on the import path, a search space names the task as ``task: regression_task:Regression`` and its
network as ``model.name: regression_task:network``. ``dataset.name`` is ignored.
"""

import dataclasses
import hashlib

import torch
from torch import nn
from torch.nn.functional import mse_loss

from ticket_search.config.identity import derive_seed
from ticket_search.models import build_from, prunable
from ticket_search.tasks.metric import Metric
from ticket_search.tasks.task import Fit, NetworkSize, Sample, Score, Session, Task, TaskKind

ERROR = Metric(name="squared_error", higher_is_better=False, unit="of the squared target")
EXAMPLES, FEATURES = 640, 8


def network(features):
    """Return a network with one hidden layer."""
    return nn.Sequential(nn.Linear(features, 24), nn.Tanh(), nn.Linear(24, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Features ``[640, 8]`` and targets ``[640, 1]`` as float32 bytes, which can be shared between processes."""

    x: bytes
    y: bytes

    @property
    def fingerprint(self):
        return hashlib.sha256(self.x + self.y).hexdigest()[:32]

    @property
    def size(self):
        return len(self.x) + len(self.y)


class Regression(TaskKind):
    name = "regression"
    metric = ERROR

    def read(self, dataset, data_dir):
        x = torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))
        y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
        return Numbers(x.numpy().tobytes(), y.numpy().tobytes())

    def check(self, trajectory, source):
        made = build_from(trajectory.model, {"features": FEATURES}, seed=0)
        weights = dict(made.named_parameters())
        size = NetworkSize(
            values=sum(w.numel() for w in weights.values()), prunable=sum(weights[n].numel() for n in prunable(made))
        )
        return Fit(training_examples=_training(trajectory.dataset), inputs={"features": FEATURES}, size=size)

    def on(self, dataset, source, device):
        return OnDevice(dataset, source, device)


def _training(dataset):
    """Return the number of training examples. Validation examples come next, and the last 128 are for testing."""
    return EXAMPLES - 128 - dataset.validation


class OnDevice(Task):
    metric = ERROR
    fingerprint, device, inputs, training_examples = "", torch.device("cpu"), {"features": FEATURES}, 0

    def __init__(self, dataset, source, device):
        self.fingerprint, self.device, self.training_examples = (
            source.fingerprint,
            torch.device(device),
            _training(dataset),
        )
        x = torch.frombuffer(bytearray(source.x), dtype=torch.float32).view(EXAMPLES, FEATURES).to(device)
        y = torch.frombuffer(bytearray(source.y), dtype=torch.float32).view(EXAMPLES, 1).to(device)
        train, test = self.training_examples, EXAMPLES - 128
        self._splits = {
            "train": (x[:train], y[:train]),
            "validation": (x[train:test], y[train:test]),
            "test": (x[test:], y[test:]),
        }

    def build(self, model, seed, draw=0):
        return build_from(model, self.inputs, seed, draw)

    def session(self, seed, training, start):
        return Draws(*self._splits["train"], seed, training.batch_size)

    def score(self, network, split, precision):
        x, y = self._splits[split]
        with torch.no_grad():
            error = float(mse_loss(network.eval()(x), y))
        return Score(value=error, loss=None)

    def sample(self, seed, training, start):
        return Some(*self._splits["train"])


class Draws(Session):
    """Batches drawn with replacement. A checkpoint must contain the number of batches drawn so far."""

    def __init__(self, x, y, seed, batch_size):
        self._x, self._y, self._seed, self._batch_size = x, y, seed, batch_size
        self.drawn = torch.zeros((), dtype=torch.int64)

    def loss(self, network, iteration):
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "draw", iteration, int(self.drawn)))
        chosen = torch.randint(0, len(self._x), (self._batch_size,), generator=generator).to(self._x.device)
        self.drawn = self.drawn + 1
        return mse_loss(network(self._x[chosen]), self._y[chosen])

    def state(self):
        return {"batch_size": self._batch_size}, {"drawn": self.drawn}

    def restore(self, record, tensors):
        assert record == {"batch_size": self._batch_size}
        self.drawn = tensors["drawn"]


class Some(Sample):
    def __init__(self, x, y):
        self._x, self._y = x, y

    def loss(self, network):
        return mse_loss(network(self._x), self._y)

    def ones(self):
        return torch.ones_like(self._x[:1], dtype=torch.float64)

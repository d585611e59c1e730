"""The only place where weights are trained."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ticket_search.config.identity import derive_seed
from ticket_search.config.trajectory import Precision, TrainingSpec
from ticket_search.pruning.masks import Mask
from ticket_search.training.schedule import learning_rate

Weights = dict[str, Tensor]


class Stream(Protocol):
    """The training images of one run, in the order of its seed."""

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images, float32 [b, c, h, w], and labels, int64 [b], of an iteration counted from 0."""


class Data(Protocol):
    """What training asks of a data set, all of it on the network's device."""

    def stream(self, seed: int, batch_size: int) -> Stream:
        """The batches of a run's seed."""

    def batches(self, split: Literal["validation", "test"]) -> Iterator[tuple[Tensor, Tensor]]:
        """A split, once, in order."""


class Watch(Protocol):
    """Looks at a training as it goes on, and may end it."""

    every: int
    """Iterations between two looks."""

    def __call__(self, iteration: int, weights: Weights) -> bool:
        """Whether the training is to end after this iteration; the weights are the network's own, not to be changed."""

    def state(self) -> tuple[Any, Weights]:
        """What it remembers, for a checkpoint: plain JSON data, and tensors."""

    def restore(self, record: Any, tensors: Weights) -> None:
        """Remember what `state` gave."""


@dataclass(frozen=True, kw_only=True)
class LevelInputs:
    """What one training starts from.

    Attributes:
        weights: every parameter and buffer of the network, by name.
        mask: which weights are trained; the others stay as they are in `weights`. Empty for a dense network.
        seed: the run's seed: data order, augmentation, dropout.
        start: iterations that `weights` have already been trained; the schedule and the data go on from there.
        shift: how far data order, dropout and learning rate are ahead of the iterations counted; past the schedule's
            end, the rate stays at its last.
        keep: iterations whose weights to keep: the weights after so many updates.
        stop: end after so many iterations already, and measure nothing on the test split.
        watch: may end the training earlier, which then counts as finished.
    """

    weights: Mapping[str, Tensor]
    mask: Mask
    seed: int
    start: int = 0
    shift: int = 0
    keep: tuple[int, ...] = ()
    stop: int | None = None
    watch: Watch | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a learning curve. `train_loss` is the mean over the batches since the one before."""

    iteration: int
    train_loss: float
    val_loss: float
    val_metric: float

    @property
    def is_finite(self) -> bool:
        """Whether both losses are numbers; once one is not, the training has diverged."""
        return math.isfinite(self.train_loss) and math.isfinite(self.val_loss)


@dataclass(frozen=True, kw_only=True)
class LevelOutputs:
    """What one training came to.

    Attributes:
        weights: every parameter and buffer after the last iteration.
        kept: iteration -> weights, for the iterations in `LevelInputs.keep`.
        curve: one point every `evaluate_every` iterations, and one at the end. Its last point is the level's result.
        diverged: whether the last point's losses are not finite; training ended there and nothing below is known.
        test_loss, test_metric: after the last iteration; not measured where training was to `LevelInputs.stop`.
        early_stop_iteration: of the lowest validation loss on the curve (the first of equal ones).
        early_stop_test_metric: of the weights at that iteration.
        iterations: updates made.
    """

    weights: Weights
    kept: dict[int, Weights]
    curve: list[Point]
    diverged: bool
    test_loss: float = math.nan
    test_metric: float = math.nan
    early_stop_iteration: int = -1
    early_stop_test_metric: float = math.nan
    iterations: int
    train_seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that the rest of a training depends on, between two iterations.

    Attributes:
        record: plain JSON data: the iteration, the curve so far, the seconds spent.
        tensors: weights, optimizer state, the losses since the last evaluation, the best weights and those kept so far.
    """

    record: dict[str, Any]
    tensors: Weights

    @property
    def iteration(self) -> int:
        """Iterations of the schedule that are done."""
        return int(self.record["iteration"])


class Checkpoints(Protocol):
    """Where a training keeps its state while it runs."""

    seconds: float
    """Between two states that are kept."""

    def load(self) -> TrainingState | None:
        """The state kept last, by a training with the same inputs; None if there is none."""

    def save(self, state: TrainingState) -> None:
        """Keep a state instead of the last one."""


def train_levels(
    levels: Sequence[LevelInputs],
    network: nn.Module,
    data: Data,
    training: TrainingSpec,
    checkpoints: Sequence[Checkpoints | None] | None = None,
) -> list[LevelOutputs]:
    """Train levels of one architecture; this plain executor takes them one by one.

    Args:
        levels: where each starts.
        network: the architecture, on the device to train on. Its own values are overwritten.
        data: on the same device.
        training: resolved: every duration in iterations.
        checkpoints: of each level, where it is kept and gone on from; None keeps none. The outputs are the same, to
            the bit, however often a training was interrupted.
    """
    places = checkpoints or [None] * len(levels)
    with reproducible(_device(network)):
        return [_train(level, network, data, training, place) for level, place in zip(levels, places, strict=True)]


def _train(
    level: LevelInputs, network: nn.Module, data: Data, training: TrainingSpec, checkpoints: Checkpoints | None
) -> LevelOutputs:
    started = time.perf_counter()
    _load(network, level.weights)
    update = Update(level, network, data, training)
    state = checkpoints and checkpoints.load()
    course = _restore(state, network, update, level.watch) if state else _Course(done=level.start)
    stop, every = level.stop or int(training.iterations), int(training.evaluate_every)
    if level.start == course.done and level.start in level.keep:
        course.kept[level.start] = _snapshot(network)
    keep_at = started + checkpoints.seconds if checkpoints else math.inf
    while course.done < stop and not course.ended:
        course.losses.append(update(course.done))
        course.done += 1
        if course.done in level.keep:
            course.kept[course.done] = _snapshot(network)
        course.ended = _ends(level.watch, course.done, network)
        if course.done % every == 0 or course.done == stop or course.ended:
            point = _evaluate(network, data, course.done, course.losses, training)
            course.curve.append(point)
            course.losses.clear()
            if not point.is_finite:
                break
            if point.val_loss < course.best:
                course.best, course.best_weights = point.val_loss, _snapshot(network)
        if checkpoints and course.done < stop and not course.ended and time.perf_counter() >= keep_at:
            seconds = course.seconds + time.perf_counter() - started
            checkpoints.save(_capture(course, network, update, level.watch, seconds))
            keep_at = time.perf_counter() + checkpoints.seconds

    outputs = LevelOutputs(
        weights=_snapshot(network),
        kept={k: weights for k, weights in course.kept.items() if k in level.keep},
        curve=course.curve,
        diverged=not course.curve[-1].is_finite,
        iterations=course.done - level.start,
        train_seconds=course.seconds + time.perf_counter() - started,
    )
    if outputs.diverged or level.stop:
        return outputs
    return _test(outputs, course.best_weights or level.weights, network, data, training)


@dataclass
class _Course:
    """What a training has come to so far, beside its weights and the optimizer's state.

    Attributes:
        done: iterations of the schedule.
        kept: iteration -> weights.
        curve: the evaluations.
        losses: of the batches since the last of them.
        best: the lowest validation loss.
        best_weights: at that evaluation; empty before the first.
        seconds: spent before this process took it up.
        ended: whether `LevelInputs.watch` has ended it.
    """

    done: int
    kept: dict[int, Weights] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    best: float = math.inf
    best_weights: Weights = field(default_factory=dict)
    seconds: float = 0.0
    ended: bool = False


def _ends(watch: Watch | None, done: int, network: nn.Module) -> bool:
    if watch is None or done % watch.every:
        return False
    return watch(done, {name: value.detach() for name, value in network.state_dict().items()})


def _capture(
    course: _Course, network: nn.Module, update: "Update", watch: Watch | None, seconds: float
) -> TrainingState:
    """The state between two iterations, on the CPU."""
    tensors = {f"weights/{name}": value for name, value in _snapshot(network).items()}
    tensors |= {f"optimizer/{name}": value for name, value in update.optimizer_state().items()}
    tensors |= {f"best/{name}": value for name, value in course.best_weights.items()}
    for iteration, weights in course.kept.items():
        tensors |= {f"kept/{iteration}/{name}": value for name, value in weights.items()}
    if course.losses:
        tensors["losses"] = torch.stack(course.losses)
    curve = [list(astuple(point)) for point in course.curve]
    record = {"iteration": course.done, "curve": curve, "seconds": seconds, "kept": sorted(course.kept)}
    if watch:
        record["watch"], remembered = watch.state()
        tensors |= {f"watch/{name}": value for name, value in remembered.items()}
    return TrainingState(record=record, tensors={name: value.cpu() for name, value in tensors.items()})


def _restore(state: TrainingState, network: nn.Module, update: "Update", watch: Watch | None) -> _Course:
    """Put network, optimizer and watch into a state; the inverse of `_capture`."""
    device = _device(network)

    def part(prefix: str) -> Weights:
        """In the network's order, as if it had just been taken from it."""
        names = [name for name in network.state_dict() if prefix + name in state.tensors]
        return {name: state.tensors[prefix + name].to(device) for name in names}

    _load(network, part("weights/"))

    def below(prefix: str) -> Weights:
        return {n.removeprefix(prefix): value for n, value in state.tensors.items() if n.startswith(prefix)}

    update.load_optimizer_state({name: value.to(device) for name, value in below("optimizer/").items()})
    if watch:
        watch.restore(state.record["watch"], below("watch/"))
    curve = [Point(iteration=i, train_loss=t, val_loss=v, val_metric=a) for i, t, v, a in state.record["curve"]]
    return _Course(
        done=state.iteration,
        kept={k: part(f"kept/{k}/") for k in state.record["kept"]},
        curve=curve,
        losses=list(state.tensors["losses"].to(device).unbind()) if "losses" in state.tensors else [],
        best=min((point.val_loss for point in curve), default=math.inf),
        best_weights=part("best/"),
        seconds=state.record["seconds"],
    )


def _test(
    outputs: LevelOutputs,
    best_weights: Mapping[str, Tensor],
    network: nn.Module,
    data: Data,
    training: TrainingSpec,
) -> LevelOutputs:
    test_loss, test_metric = evaluate(network, data, "test", training.precision)
    _load(network, best_weights)
    _, early_stop_test_metric = evaluate(network, data, "test", training.precision)
    return replace(
        outputs,
        test_loss=test_loss,
        test_metric=test_metric,
        early_stop_iteration=min(outputs.curve, key=lambda point: point.val_loss).iteration,
        early_stop_test_metric=early_stop_test_metric,
    )


class Update:
    """One iteration of training: the only ``optimizer.step``, and the mask applied again right after it."""

    def __init__(self, level: LevelInputs, network: nn.Module, data: Data, training: TrainingSpec) -> None:
        parameters = dict(network.named_parameters())
        self._network = network
        self._training = training
        self._shift = level.shift
        self._device = _device(network)
        self._stream = data.stream(level.seed, training.batch_size)
        self._noise = derive_seed(level.seed, "noise")
        self._masked = [parameters[name].detach() for name in level.mask]
        self._masks = [kept.to(parameters[name]) for name, kept in level.mask.items()]
        frozen = [torch.where(kept.cpu(), 0.0, level.weights[name].cpu()) for name, kept in level.mask.items()]
        self._frozen = [values.to(self._device) for values in frozen] if any(bool(v.any()) for v in frozen) else []
        self._optimizer = _optimizer(network, training)
        # A tied weight stands in the state under each of its names, of which the mask knows one.
        self._apply_mask()

    def __call__(self, iteration: int) -> Tensor:
        """Make the update that follows `iteration` updates; returns the batch's loss, still on the device."""
        iteration += self._shift
        # Dropout draws from the device's generator: seeded here, a training taken up midway draws the same.
        seed_generators(self._device, (self._noise + iteration) % 2**63)
        images, labels = self._stream.batch(iteration)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._training, iteration)
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with arithmetic(self._training.precision, self._device):
            logits = self._network(images)
        loss = cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._apply_mask()
        return loss.detach()

    def optimizer_state(self) -> Weights:
        """What the optimizer remembers: ``<place of the parameter>/<name>`` -> tensor."""
        state = self._optimizer.state_dict()["state"]
        return {
            f"{place}/{name}": value.clone()
            for place, values in state.items()
            for name, value in values.items()
            if value is not None
        }

    def load_optimizer_state(self, tensors: Weights) -> None:
        """Make the optimizer remember what `optimizer_state` gave."""
        state: dict[int, Weights] = {}
        for path, value in tensors.items():
            place, name = path.split("/")
            state.setdefault(int(place), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _apply_mask(self) -> None:
        if self._masks:
            torch._foreach_mul_(self._masked, self._masks)
        if self._frozen:
            torch._foreach_add_(self._masked, self._frozen)


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; in bf16, torch's autocast chooses which operations take it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def evaluate(
    network: nn.Module, data: Data, split: Literal["validation", "test"], precision: Precision = "fp32"
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy, in [0, 1], of a split; the device is waited for once."""
    network.eval()
    device = _device(network)
    loss_sum = correct = torch.zeros((), device=device)
    images_seen = 0
    with torch.no_grad():
        for images, labels in data.batches(split):
            with arithmetic(precision, device):
                logits = network(images)
            logits = logits.float()
            loss_sum = loss_sum + cross_entropy(logits, labels, reduction="sum")
            correct = correct + (logits.argmax(1) == labels).sum()
            images_seen += len(labels)
    return float(loss_sum) / images_seen, float(correct) / images_seen


def _evaluate(network: nn.Module, data: Data, iteration: int, losses: list[Tensor], training: TrainingSpec) -> Point:
    val_loss, val_metric = evaluate(network, data, "validation", training.precision)
    train_loss = float(torch.stack(losses).mean())
    return Point(iteration=iteration, train_loss=train_loss, val_loss=val_loss, val_metric=val_metric)


def _optimizer(network: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    spec, parameters = training.optimizer, list(network.parameters())
    # The fused kernels take a quarter off an iteration of LeNet-300-100 on a CPU.
    if spec.name == "adam":
        return torch.optim.Adam(parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _load(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    network.load_state_dict(dict(weights), strict=True)


def _snapshot(network: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of the device."""
    # torch.manual_seed visits every kind of device: 0.2 ms, a tenth of an iteration.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Same inputs, same bits; the caller's random state and torch's settings are as before afterwards."""
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    # Read by cuBLAS once in a process, so it stays set.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul = torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    tf32, fill = matmul.allow_tf32, memory.fill_uninitialized_memory
    # Only a warning: some networks (adaptive pooling) have a step that CUDA cannot do in a fixed order.
    torch.use_deterministic_algorithms(True, warn_only=True)
    matmul.allow_tf32 = False  # fp32 is fp32
    # Nothing here reads memory before it is written; filling all of it costs a kernel for each new tensor.
    memory.fill_uninitialized_memory = False
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with torch.random.fork_rng(devices=[device]), cudnn:
            yield
    finally:
        matmul.allow_tf32 = tf32
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])

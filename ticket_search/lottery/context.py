"""The state shared by all steps of one trajectory: its settings, network, task and keys."""

from collections.abc import Mapping

from torch import Tensor

from ticket_search.config.executors import check_executor
from ticket_search.config.identity import copy_key, dense_key, early_bird_key, pruned_key, rewind_key
from ticket_search.config.trajectory import TrajectorySpec
from ticket_search.lottery.level import Level
from ticket_search.models import aliases, network_digest, output_mark, prunable
from ticket_search.pruning.masks import Mask, full_mask
from ticket_search.tasks.registry import task_digest
from ticket_search.tasks.task import Task
from ticket_search.training.executors.registry import chosen_executor, executor_key

Weights = Mapping[str, Tensor]


class Context:
    """One trajectory's settings and everything derived from them.

    Args:
        spec: the trajectory's specification.
        task: the specification's task, on the training device.

    Attributes:
        spec: the resolved specification: durations in iterations, normalization constants filled in.
        network: the network, on the training device; training and scoring overwrite its weights.
        initial: every parameter and buffer before training.
        prunable: the names of the prunable parameters; the output layer's weight comes last.
        executor: the name of the executor that trains the levels.
        dense_key: the level key of the dense network trained for the full schedule.
        first_key: the level key of level 0; the same as `dense_key` unless early-bird may end level 0 early.

    Raises:
        SpecError: the specification does not fit the data.
    """

    def __init__(self, spec: TrajectorySpec, task: Task) -> None:
        resolved = spec.resolve(task.training_examples)
        self.spec = resolved.model_copy(update={"dataset": task.resolved(spec.dataset)})
        self.task = task
        self.pruning = self.spec.pruning
        self.network = task.build(spec.model, spec.seed).to(task.device)
        self.initial = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.prunable = prunable(self.network, task.example())
        self._first_name = aliases(self.network)
        self.executor = chosen_executor(self.spec.training)
        check_executor(self.spec, gpus=int(task.device.type != "cpu"))
        self.dense_key = dense_key(
            self.spec,
            data=task.fingerprint,
            network=network_digest(spec.model) + output_mark(self.network, self.prunable),
            task=task_digest(spec.task),
            executor=executor_key(self.executor),
        )
        early = self.pruning.early_bird
        self.first_key = early_bird_key(self.dense_key, early, self.pruning) if early else self.dense_key

    def next_key(self, parent: Level) -> str:
        """Return the key of the level after `parent`."""
        return pruned_key(parent.key, self.pruning, parent.number + 1)

    def level_key(self, number: int) -> str:
        """Return the key of level `number`, whether or not it has been trained."""
        key = self.first_key
        for level in range(1, number + 1):
            key = pruned_key(key, self.pruning, level)
        return key

    @property
    def rewind_key(self) -> str:
        """The store's key for the rewind weights, to which surviving weights are reset."""
        return rewind_key(self.dense_key, self.pruning.rewind_iteration)

    def copy_key(self, number: int, copy: int) -> str:
        """Return the store's key for a copy of level `number`. Copies, counted from 0, differ in their data order."""
        return copy_key(self.level_key(number) if number > 0 else self.rewind_key, copy)

    def whole_mask(self) -> Mask:
        """Return the mask of the dense network, which keeps every weight."""
        return full_mask({name: value.cpu() for name, value in self.initial.items()}, self.prunable)

    def draw(self, number: int) -> dict[str, Tensor]:
        """Return the weights of the network's initialization `number`; the trajectory itself uses initialization 0."""
        return dict(self.task.build(self.spec.model, self.spec.seed, draw=number).state_dict())

    def tied(self, weights: Weights) -> dict[str, Tensor]:
        """Return the weights, with all names of a tied weight mapped to the same tensor.

        A state dict lists a tied weight under each of its names, and `load_state_dict` keeps whichever it loads last.
        """
        return {name: weights[self._first_name.get(name, name)] for name in weights}

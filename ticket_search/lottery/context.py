"""What all steps of one trajectory share: its settings, its network, its task, its keys."""

from collections.abc import Mapping

from torch import Tensor

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
    """One trajectory's settings and what follows from them alone.

    Args:
        spec: what to run.
        task: of the specification, on the device to train on.

    Attributes:
        spec: resolved: durations in iterations, the constants of normalisation in force.
        network: the architecture, on the device; training and scoring overwrite its values.
        initial: every parameter and buffer before any training.
        prunable: names of the parameters that pruning may touch, the output layer's last.
        executor: the name of the one that trains the levels.
        dense_key: the level key of the dense network trained to its end.
        first_key: the level key of level 0, which early-bird may end earlier.

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
        """The key of the level after `parent`."""
        return pruned_key(parent.key, self.pruning, parent.number + 1)

    def level_key(self, number: int) -> str:
        """The key of a level of the trajectory, trained or not."""
        key = self.first_key
        for level in range(1, number + 1):
            key = pruned_key(key, self.pruning, level)
        return key

    @property
    def rewind_key(self) -> str:
        """The store's key of the weights that survivors are rewound to."""
        return rewind_key(self.dense_key, self.pruning.rewind_iteration)

    def copy_key(self, number: int, copy: int) -> str:
        """The store's key of another training of level `number` under another data order; `copy` counts from 0."""
        return copy_key(self.level_key(number) if number > 0 else self.rewind_key, copy)

    def whole_mask(self) -> Mask:
        """The mask of the dense network, which keeps every weight."""
        return full_mask({name: value.cpu() for name, value in self.initial.items()}, self.prunable)

    def draw(self, number: int) -> dict[str, Tensor]:
        """Initialization `number` of the network; 0 is the one that the trajectory trains."""
        return dict(self.task.build(self.spec.model, self.spec.seed, draw=number).state_dict())

    def tied(self, weights: Weights) -> dict[str, Tensor]:
        """The weights with every name of a tied weight set to the same tensor.

        A state dict lists a tied weight under each of its names, and torch keeps the one that it loads last.
        """
        return {name: weights[self._first_name.get(name, name)] for name in weights}

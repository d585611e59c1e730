"""The items to work on when a GPU is available, most valuable first."""

import sys
from pathlib import Path

from work_queue import Item, Step

ROOT = Path(__file__).parents[2]
#: The test files that contain GPU tests. pytest collects only these files, because the others import packages that may
#: not be installed.
TESTS = ("lottery/test_follow_ups_on_cuda", "lottery/test_on_cuda", "training/test_devices", "data/test_dataset")
#: Settings that read CIFAR-10 as JPEG images from Parquet files in the data directory; see docs/cifar10_conv2.md.
JPEG = ("dataset.name=parquet", "dataset.path=cifar10-jpeg")


def tests(file: str) -> Step:
    """Return a step that runs the GPU tests in a file."""
    words = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", f"tests/{file}.py")
    return Step(name=Path(file).name, command=lambda run_dir: words)


def search(space: str, *settings: str) -> Step:
    """Return a step that runs one of the package's searches. Running the same command again resumes the search."""
    settings = (*settings, "search.checkpoint_seconds=30")
    words = (sys.executable, "-m", "ticket_search.cli", "run", f"search_spaces/{space}.yaml", "--engine", "processes")
    words += tuple(word for setting in settings for word in ("--set", setting))
    return Step(name="search", command=lambda run_dir: (*words, "--output", str(run_dir)), writes_tables=True)


def paper_tables(*options: str) -> Step:
    """Return a step that prints the tables of a replication."""
    words = (sys.executable, "benchmarks/paper_tables.py")
    return Step(name="tables", command=lambda run_dir: (*words, str(run_dir), *options))


ITEMS = (
    Item(
        name="cuda_tests",
        question="Do the CPU guarantees, including those of early-bird, transfer and copies, hold on a GPU? (minutes)",
        steps=tuple(tests(file) for file in TESTS),
    ),
    Item(
        name="stacked",
        question="How much faster is an iteration in a stack of 16 to 64 lanes than in a plain level? (minutes)",
        steps=(
            Step(
                name="stacked",
                command=lambda run_dir: (sys.executable, "benchmarks/executors.py", "stacked", "--device", "cuda"),
            ),
        ),
    ),
    Item(
        name="cifar10_conv2",
        question="Conv-2 on CIFAR-10 (JPEG) as in the paper: levels 12 to 16 and the controls. (about 45 minutes)",
        steps=(search("cifar10_conv2_paper", *JPEG, "training.precision=bf16"), paper_tables()),
    ),
    Item(
        name="cifar10_resnet20",
        question="ResNet-20 on CIFAR-10 (JPEG) as in the paper, rewound to 0 and to 500, five seeds. (hours)",
        steps=(search("cifar10_resnet20", *JPEG, "space.rewind_iteration=[0, 500]"),),
    ),
)

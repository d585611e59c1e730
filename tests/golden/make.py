"""Make a golden run directory: ``python tests/golden/make.py``. An existing directory is never replaced.

The directory contains a finished search of 2 trajectories with 3 levels each. To hide the machine's name and paths, the
script replaces the name of the event file and the run directory in ``store/searches``. It leaves out the TensorBoard
files. If you raise the version of the tables, of the store's entries or of the engine, make another directory,
``version_2``, and leave the earlier directories unchanged: `test_golden.py` tests that they can still be read.
"""

import json
import sys
import tempfile
from pathlib import Path

from ticket_search.config.loading import parse_search
from ticket_search.launch.run import run_search
from ticket_search.results.events import read_events

SEARCH = """
name: golden
dataset: {name: digits, validation: 300}
model: {name: lenet_4}
training: {optimizer: {name: adam, lr: 0.02}, batch_size: 64, iterations: 60, evaluate_every: 20}
pruning: {max_levels: 2, rewind_iteration: 5, strategy: global}
space: {pruning_rate: [0.25, 0.5], dataset.augment: [null, {crop: 1}]}
seeds: [0]
search: {sampler: random, trials: 2, early_stopping: null}
"""
_HERE = Path(__file__).parent


def main(version: str) -> None:
    """Make ``tests/golden/<version>``."""
    target = _HERE / version
    if target.exists():
        sys.exit(f"{target} exists and must not change")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "run"
        run_search(parse_search(SEARCH, "golden"), made)
        events = read_events(made)
        for path in sorted(path for path in made.rglob("*") if path.is_file()):
            name = path.relative_to(made)
            if name.parts[0] in ("tensorboard", "events", "lock"):
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(path.read_bytes())
    (target / "events").mkdir()
    (target / "events" / "worker-1-00000000.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    for path in (target / "store" / "searches").iterdir():
        path.write_text(json.dumps({"run_dir": "/runs/golden", "name": "golden"}))


if __name__ == "__main__":
    main("version_1")

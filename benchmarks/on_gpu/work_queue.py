"""A list of work that is done piece by piece, whenever there is time on some machine.

An item is a few commands, run one after another. A call works on one item for some minutes; a command that is not
done by then is interrupted as by Ctrl-C, and the next call runs it again, which goes on from what was finished.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Of a run directory, what is kept beside the code: no level store, no events.
TABLES = ("search.yaml", "levels", "trajectories", "curves", "layers", "controls", "early_bird")
INTERRUPTED = 130
#: For a command to write down what it has, once it is interrupted.
_SECONDS_TO_END = 30.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        name: unique within the item.
        command: its words, given the item's run directory; run again, it goes on.
        writes_tables: whether the run directory is that of a search, whose tables are results.
    """

    name: str
    command: Callable[[Path], Sequence[str]]
    writes_tables: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to find out.

    Attributes:
        name: of its folder and its record.
        question: what it answers, and about how long that takes.
        steps: in their order.
    """

    name: str
    question: str
    steps: tuple[Step, ...]


class WorkQueue:
    """Items, and how far each of them is.

    Args:
        items: in the order of their worth.
        out: ``results/`` in it is for the repository: of each item a record ``NAME.json`` and a folder ``NAME``.
            ``runs/NAME`` is what the item needs to go on.
    """

    def __init__(self, items: Sequence[Item], out: Path) -> None:
        self._items = items
        self._out = out

    def state(self, item: Item) -> str:
        """``new``, ``partial``, ``failed`` or ``done``."""
        return str(self._record(item)["state"])

    def next(self) -> Item | None:
        """The first item that is not done; those that failed come last. None if all are done."""
        states = {item.name: self.state(item) for item in self._items}
        open_items = [item for item in self._items if states[item.name] != "done"]
        return min(open_items, key=lambda item: states[item.name] == "failed", default=None)

    def work(self, item: Item, seconds: float, machine: dict[str, Any], *, cwd: Path, env: dict[str, str]) -> str:
        """Work on an item for so long at most, and write down what came of it.

        Args:
            item: of the list.
            seconds: that the call may take, which includes `_SECONDS_TO_END`.
            machine: what the record says of where and when.
            cwd, env: of the commands.

        Returns:
            The state of the item.
        """
        started = time.monotonic()
        record, run_dir, results = self._record(item), self._out / "runs" / item.name, self._results(item)
        for folder in (run_dir.parent, results):
            folder.mkdir(parents=True, exist_ok=True)
        state = "done"
        for step in item.steps:
            if step.name in record["steps_done"]:
                continue
            left = seconds - (time.monotonic() - started)
            with (results / f"{step.name}.txt").open("a") as said:
                state = _outcome(step.command(run_dir), left, cwd, env, said)
            if step.writes_tables:
                _copy_tables(run_dir, results)
            if state != "done":
                break
            record["steps_done"].append(step.name)
        record["state"] = state
        record["calls"].append(machine | {"seconds": round(time.monotonic() - started), "state": state})
        self._write(item, record)
        return state

    def _results(self, item: Item) -> Path:
        return self._out / "results" / item.name

    def _record(self, item: Item) -> dict[str, Any]:
        file = self._results(item).with_suffix(".json")
        if not file.exists():
            return {"item": item.name, "question": item.question, "state": "new", "steps_done": [], "calls": []}
        record: dict[str, Any] = json.loads(file.read_text())
        return record

    def _write(self, item: Item, record: dict[str, Any]) -> None:
        file = self._results(item).with_suffix(".json")
        aside = file.with_suffix(".part")
        aside.write_text(json.dumps(record, indent=2) + "\n")
        aside.replace(file)


def _outcome(words: Sequence[str], seconds: float, cwd: Path, env: dict[str, str], said: Any) -> str:
    """Run a command for so long at most: ``done``, ``partial`` or ``failed``."""
    if seconds <= _SECONDS_TO_END:
        return "partial"
    process = subprocess.Popen(
        words, cwd=cwd, env=env, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        code = process.wait(seconds - _SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _end(process)
        return "partial"
    return {0: "done", INTERRUPTED: "partial"}.get(code, "failed")


def _end(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that was interrupted; with all that it has started it ends in time."""
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _copy_tables(run_dir: Path, results: Path) -> None:
    for name in TABLES:
        source = run_dir / name
        if source.is_dir():
            shutil.copytree(source, results / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, results / name)

"""A queue of work that is done a few minutes at a time, whenever a machine is available.

An item consists of a few commands that run one after another. Each call works on one item for a limited time. If a
command is still running when the time is up, it is interrupted as if by Ctrl-C. The next call runs the same command
again, which resumes where it was interrupted.
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

#: The parts of a run directory that are copied to the results. The level store and the events are not copied.
TABLES = ("search.yaml", "levels", "trajectories", "curves", "layers", "controls", "early_bird")
INTERRUPTED = 130
#: The time that an interrupted command has to save its work before it is killed, in seconds.
_SECONDS_TO_END = 30.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of an item.

    Attributes:
        name: the step's name, unique within the item.
        command: a function that returns the argument list, given the item's run directory. Running the command again
            must resume its work.
        writes_tables: whether the command runs a search. The tables of the search are copied to the results.
    """

    name: str
    command: Callable[[Path], Sequence[str]]
    writes_tables: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question, and the commands that answer it.

    Attributes:
        name: the name of the item's folder and record.
        question: the question, and roughly how long it takes to answer it.
        steps: the commands, in the order in which they run.
    """

    name: str
    question: str
    steps: tuple[Step, ...]


class WorkQueue:
    """The items and their states.

    Args:
        items: the items, most valuable first.
        out: the output folder. Its subfolder ``results``, which is meant to be committed, contains a record
            ``NAME.json`` and a folder ``NAME`` for each item. ``runs/NAME`` is the run directory of the item, which is
            needed to resume the item.
    """

    def __init__(self, items: Sequence[Item], out: Path) -> None:
        self._items = items
        self._out = out

    def state(self, item: Item) -> str:
        """Return the state of an item: ``new``, ``partial``, ``failed`` or ``done``."""
        return str(self._record(item)["state"])

    def next(self) -> Item | None:
        """Return the next item that is not done, or None if all are done. Failed items come last."""
        states = {item.name: self.state(item) for item in self._items}
        open_items = [item for item in self._items if states[item.name] != "done"]
        return min(open_items, key=lambda item: states[item.name] == "failed", default=None)

    def work(self, item: Item, seconds: float, machine: dict[str, Any], *, cwd: Path, env: dict[str, str]) -> str:
        """Work on an item for a limited time and record its new state.

        Args:
            item: an item of the queue.
            seconds: the time limit of the call, including `_SECONDS_TO_END`.
            machine: the date, hardware and versions, for the record.
            cwd: the working directory of the commands.
            env: the environment of the commands.

        Returns:
            The new state of the item.
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
    """Run a command for at most `seconds`; return ``done``, ``partial`` or ``failed``."""
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
    """Wait for an interrupted process to exit; if it does not exit in time, kill it and its children."""
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

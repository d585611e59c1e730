"""What happened and when: ``events/`` of a run directory, JSON lines, one file per process."""

import json
import math
import os
import socket
import time
from functools import lru_cache
from typing import Any
from uuid import uuid4

from ticket_search.storage.folder import Location, open_folder
from ticket_search.storage.lines import LineFile, complete_lines

#: Process ids come again; this does not. A forked process has its own id.
_TOKEN = uuid4().hex[:8]


class EventLog:
    """Appends events to a file of this process. Holds no file open, and a fork has a file of its own.

    Args:
        run_dir: the run directory; ``events/`` appears in it with the first event.
        process: names the file; None means host, process id and a token. No two live processes may share a name.
    """

    def __init__(self, run_dir: Location, process: str | None = None) -> None:
        self._folder = open_folder(run_dir) / "events"
        self._named = LineFile(self._folder, process) if process else None

    def log(self, event: str, **fields: Any) -> None:
        """Append ``{"time": ..., "event": ..., **fields}``, time in Unix seconds.

        What JSON has no word for is made fit: a float that is not finite becomes null, an object its ``str``.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        line = json.dumps({"time": time.time(), "event": event, **finite}, default=str)
        file = self._named or _file(str(self._folder), f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}")
        file.append(line, durable=False)


@lru_cache(maxsize=64)
def _file(folder: str, process: str) -> LineFile:
    # One for each file, however many logs write to it: where files cannot grow, two would overwrite each other's lines.
    return LineFile(open_folder(folder), process)


def read_events(run_dir: Location) -> list[dict[str, Any]]:
    """The events of all processes, by time. What is no event, such as a line half written, is left out."""
    folder = open_folder(run_dir) / "events"
    contents = [folder.read(file.name) or b"" for file in folder.files() if file.name.endswith(".jsonl")]
    events = (_parse(line) for content in contents for line in complete_lines(content))
    return sorted((event for event in events if event), key=lambda event: event["time"])


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "time" in event and "event" in event else None

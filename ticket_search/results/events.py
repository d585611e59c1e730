"""The event log, ``events/`` in a run directory: JSON lines, one file per process."""

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

#: Distinguishes this process from a later one with the same process id. A forked process has the same token, but
#: a different process id.
_TOKEN = uuid4().hex[:8]


class EventLog:
    """A log that appends events to a file of the current process. It does not keep the file open between events.

    Args:
        run_dir: the run directory; the first event creates its folder ``events/``.
        process: the name of the file, without ``.jsonl``; no two running processes may use the same name. If None, the
            name consists of the host, the process id and a token, so a forked process writes to a different file.
    """

    def __init__(self, run_dir: Location, process: str | None = None) -> None:
        self._folder = open_folder(run_dir) / "events"
        self._named = LineFile(self._folder, process) if process else None

    def log(self, event: str, **fields: Any) -> None:
        """Append ``{"time": ..., "event": ..., **fields}``, with the time in Unix seconds.

        Infinity and NaN become null, and objects that JSON cannot represent are converted to strings.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        line = json.dumps({"time": time.time(), "event": event, **finite}, default=str)
        file = self._named or _file(str(self._folder), f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}")
        file.append(line, durable=False)


@lru_cache(maxsize=64)
def _file(folder: str, process: str) -> LineFile:
    # All logs that write to the same file share one `LineFile`, because two `LineFile` objects would overwrite each
    # other's lines in object storage.
    return LineFile(open_folder(folder), process)


def read_events(run_dir: Location) -> list[dict[str, Any]]:
    """Read the events of all processes, sorted by time. Incomplete and invalid lines are skipped."""
    folder = open_folder(run_dir) / "events"
    contents = [folder.read(file.name) or b"" for file in folder.files() if file.name.endswith(".jsonl")]
    events = (_parse(line) for content in contents for line in complete_lines(content))
    return sorted((event for event in events if event), key=lambda event: event["time"])


#: The types of the fields that readers rely on. Every event has `time` and `event`; the other fields are optional.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "time": (int, float),
    "event": str,
    "trajectory_id": str,
    "level": int,
    "level_key": str,
    "status": str,
    "reason": (str, type(None)),
}


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(event, dict) and "time" in event and "event" in event):
        return None
    return event if all(isinstance(event[name], kind) for name, kind in _TYPES.items() if name in event) else None

"""What happened and when: ``events/`` of a run directory, JSON lines, one file per process."""

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from ticket_search.files import append_line, read_lines

#: Process ids come again; this does not. A forked process has its own id.
_TOKEN = uuid4().hex[:8]


class EventLog:
    """Appends events to a file of this process. Holds no file open, so it may be copied to another process.

    Args:
        run_dir: the run directory; ``events/`` appears in it with the first event.
        process: names the file; None means host, process id and a token. No two live processes may share a name.
    """

    def __init__(self, run_dir: Path, process: str | None = None) -> None:
        self._folder = run_dir / "events"
        self._process = process

    def log(self, event: str, **fields: Any) -> None:
        """Append ``{"time": ..., "event": ..., **fields}``, time in Unix seconds.

        What JSON has no word for is made fit: a float that is not finite becomes null, an object its ``str``.
        """
        process = self._process or f"{socket.gethostname()}-{os.getpid()}-{_TOKEN}"
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        line = json.dumps({"time": time.time(), "event": event, **finite}, default=str)
        append_line(self._folder / f"{process}.jsonl", line, durable=False)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The events of all processes, by time. A line that is half written is left out."""
    files = sorted((run_dir / "events").glob("*.jsonl"))
    return sorted((json.loads(line) for file in files for line in read_lines(file)), key=lambda event: event["time"])

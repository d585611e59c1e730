"""Claims on any storage: one process at a time holds a name, and a claim does not outlive its process.

To claim a name, a process writes a file with a random suffix and then lists the folder. If its file is the only one,
the process holds the name; otherwise it withdraws. Of two claims, the later one sees the earlier one, so at most one
process holds the name. This needs no lock service and no conditional write, only listings that show all completed
writes. A dead owner's file is removed by its unique name, so two processes that break a claim at once cannot remove a
third one.

An owner is dead when its process has ended (checked on the same machine) or when its heartbeat has not changed for
`EXPIRY_SECONDS` by the clock of the process that watches it. Clocks are never compared between machines.
"""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from ticket_search.errors import StorageError
from ticket_search.storage.folder import Folder
from ticket_search.storage.remote import impatient

#: The interval between two heartbeats of an owner.
HEARTBEAT_SECONDS = 15.0
#: A claim expires when its heartbeat has not changed for this long.
EXPIRY_SECONDS = 60.0
_LONG_AGO_SECONDS = 600
#: The files of the claims that this process is making or holds. Any other claim in its name has been released, but its
#: file could not be removed.
_held: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim.

    Attributes:
        host: the name of its machine, for messages.
        machine: identifies the machine, or the container on it, since its last boot.
        pid: its process id.
        started: when the process started, in clock ticks since boot, because process ids are reused; 0 if unknown.
        since: when it made the claim, in Unix seconds by its own clock; for messages.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: float

    @property
    def is_here(self) -> bool:
        """Whether the process runs on this machine, where its end is noticed at once."""
        return self.machine == _machine()

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {when})"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    file: str
    modified: int
    owner: Owner | None  # None: the claim is unreadable, so only its heartbeat can tell


class Leases:
    """The claims in a folder.

    Args:
        folder: holds the claims, and nothing else.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        # File -> its modification time, when this watcher first saw that time, and when it last polled the file.
        self._seen: dict[str, tuple[int, float, float]] = {}

    def owner(self, name: str) -> Owner | None:
        """The current owner of a name, as far as a single listing can tell; None if there is none.

        For messages only: heartbeats older than ten minutes count as expired, which assumes that clocks differ by less.
        """
        recent = time.time_ns() - _LONG_AGO_SECONDS * 10**9
        alive = (claim for claim in self._claims(name) if not self._is_dead(claim))
        return next((c.owner or _UNKNOWN for c in alive if c.modified > recent or (c.owner and c.owner.is_here)), None)

    def names(self) -> list[str]:
        """Every name that has a claim, including claims of dead owners."""
        claims = (file.name for file in self._folder.files() if file.name.endswith(".json"))
        return sorted({claim.rpartition(".")[0].rpartition(".")[0] for claim in claims})

    def break_dead(self, name: str) -> None:
        """Remove the claims of dead owners on a name."""
        for claim in self._claims(name):
            if self._is_dead(claim):
                self._remove(claim)

    def try_acquire(self, name: str) -> "Lease | Owner":
        """Claim a name; if another process holds it, return its owner."""
        # Spare young partial files: another process may be writing a claim at this moment.
        self._folder.sweep(older_than_seconds=EXPIRY_SECONDS)
        broken = []
        for claim in self._claims(name):
            if not self._is_dead(claim):
                return claim.owner or _UNKNOWN
            self._remove(claim)
            broken.append(claim.owner or _UNKNOWN)
        file = f"{name}.{uuid4().hex[:12]}.json"
        _held.add(file)
        try:
            self._folder.write(file, json.dumps(asdict(_this_process())).encode())
            claims = self._claims(name)
            others = [c for c in claims if c.file != file and not self._is_dead(c)]
            # If its own file is gone, this process was suspended for so long that another one broke its claim.
            if not others and any(claim.file == file for claim in claims):
                return Lease(self._folder, file, broken)
            self._folder.remove(file)
        except BaseException:
            _held.discard(file)
            raise
        _held.discard(file)
        return (others[0].owner if others else None) or _UNKNOWN

    def acquire(
        self, name: str, *, poll_seconds: float = 0.2, until: Callable[[], bool] = lambda: False
    ) -> "Lease | None":
        """Claim a name, and wait while another process holds it; None once `until()` returns True."""
        while isinstance(lease := self.try_acquire(name), Owner):
            # Random, so that two processes that withdrew together do not collide again.
            time.sleep(poll_seconds * random.uniform(0.5, 1.0))
            if until():
                return None
        return lease

    def _claims(self, name: str) -> list[_Claim]:
        """The claims on a name, including those of dead owners."""
        claims = []
        files = self._folder.files()
        modified = {file.name: file.modified for file in files}
        for file in files:
            if file.name.startswith(f"{name}.") and file.name.endswith(".json"):
                data = self._folder.read(file.name)
                if data is not None:  # else it was released after the listing
                    last = max(file.modified, modified.get(_beat_of(file.name), 0))
                    claims.append(_Claim(file=file.name, modified=last, owner=_parse(data)))
        return claims

    def _is_dead(self, claim: _Claim) -> bool:
        if claim.owner is not None and claim.owner.is_here:
            if claim.owner.pid == os.getpid():
                return claim.file not in _held
            if not is_running(claim.owner.pid, claim.owner.started):
                return True
        now = time.monotonic()
        modified, first, last = self._seen.get(claim.file, (0, now, now))
        # If this watcher has not polled recently (storage outage), restart the expiry clock.
        if modified != claim.modified or now - last > EXPIRY_SECONDS / 2:
            first = now
        self._seen[claim.file] = (claim.modified, first, now)
        return now - first > EXPIRY_SECONDS

    def _remove(self, claim: _Claim) -> None:
        self._folder.remove(claim.file)
        self._folder.remove(_beat_of(claim.file))
        self._seen.pop(claim.file, None)


class Lease(AbstractContextManager["Lease"]):
    """A name that this process holds until the end of the ``with`` block.

    Attributes:
        broken: the dead owners whose claims were removed to get this one.
    """

    def __init__(self, folder: Folder, file: str, broken: list[Owner]) -> None:
        self.broken = broken
        self._folder = folder
        self._file = file
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._beaten = _clock()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether this claim expired and another process removed it.

        Costs nothing while heartbeats succeed. After a long suspension it reads the claim, because the heartbeat thread
        may not have noticed yet.
        """
        if not self._lost.is_set() and _clock() - self._beaten > EXPIRY_SECONDS - HEARTBEAT_SECONDS:
            self.confirm()
        return self._lost.is_set()

    def confirm(self) -> bool:
        """Read the claim, and return whether this process still holds the name.

        Raises:
            StorageError: the claim cannot be read.
        """
        if self._folder.read(self._file) is None:
            self._lost.set()
        self._beaten = _clock()
        return not self._lost.is_set()

    def __enter__(self) -> "Lease":
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join(timeout=1.0)  # it may hang in a request to a silent server
        try:
            with impatient(), suppress(StorageError):  # the claim expires even if its file remains
                self._folder.remove(self._file)
                self._folder.remove(_beat_of(self._file))
        finally:
            _held.discard(self._file)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A storage outage stops the watchers' clocks too, so it is enough to try again at the next beat.
            with impatient(), suppress(Exception):
                if not self.confirm():
                    return
                # In a separate file: rewriting the claim could undo its removal by another process.
                self._folder.write(_beat_of(self._file), b"")


def _beat_of(claim: str) -> str:
    """The file whose modification time is the last heartbeat of a claim's owner."""
    return claim.removesuffix(".json") + ".beat"


def _clock() -> float:
    """Seconds by a clock that includes the time that the machine sleeps, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parse(data: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return None


_UNKNOWN = Owner(host="an unknown host", machine="", pid=0, started=0, since=0.0)


def _this_process() -> Owner:
    pid = os.getpid()
    return Owner(host=socket.gethostname(), machine=_machine(), pid=pid, started=_start_of(pid) or 0, since=time.time())


def _machine() -> str:
    """Identifies this machine since its boot, and the container, because each container has its own process ids."""
    return _machine_of(os.getpid())


@cache
def _machine_of(pid: int) -> str:
    del pid  # only a cache key: a forked process may have entered another namespace
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_running(pid: int, started: int = 0) -> bool:
    """Whether a process of this machine is alive. Without access to it, a process id in use is enough."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return _start_of(pid) in (None, started)
    return not started or _start_of(pid) == started


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for a zombie, without access, or without /proc."""
    # Not psutil: claims on disk hold ticks, and its `create_time` adds a boot time that moves when the clock is set, by
    # NTP say. An owner that is alive would then be taken for another process (psutil 7.2).
    try:
        # The name, in brackets, may contain spaces. The state is field 3, the start is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])

"""Claims on names, in any kind of storage. A name is held by one process at a time, and only while the process lives.

To claim a name, a process writes a file with a random suffix and then lists the folder. If its file is the only one,
the process holds the name; otherwise it withdraws. If two processes claim a name, the process that writes later sees
the other's file and withdraws, so at most one of them holds the name. This needs no lock service and no conditional
write, only listings that show all completed writes. A dead owner's file is removed by its unique name, so two processes
that break the same claim cannot remove a third process's new claim.

An owner is dead if its process has ended (checked on the same machine), or if its heartbeat has not changed for
`EXPIRY_SECONDS` by the clock of the process that watches it. The clocks of different machines may disagree.
"""

import json
import os
import socket
import threading
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from ticket_search.errors import StorageError
from ticket_search.storage.folder import Folder
from ticket_search.storage.remote import impatient

#: The interval in seconds between two heartbeats of an owner.
HEARTBEAT_SECONDS = 15.0
#: The time in seconds after which a claim expires if its heartbeat has not changed.
EXPIRY_SECONDS = 60.0
_LONG_AGO_SECONDS = 600
#: The files of the claims that this process holds or is trying to acquire. If another file names this process as its
#: owner, that claim was released, but its file could not be removed.
_held: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a claim.

    Attributes:
        host: the name of the process's machine, for messages.
        machine: an id of the machine, which changes at every boot and differs between containers.
        pid: the process id.
        started: when the process started, in clock ticks since boot; 0 if unknown. It is needed because process ids are
            reused.
        since: when the process made the claim, in Unix seconds by its machine's clock, for messages.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: float

    @property
    def is_here(self) -> bool:
        """Whether the process is on this machine, where its exit can be detected at once."""
        return self.machine == _machine()

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {when})"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    file: str
    modified: int
    #: None if the claim is unreadable. In that case, only its heartbeat shows whether the owner is alive.
    owner: Owner | None


class Leases:
    """The claims in a folder.

    Args:
        folder: the folder of the claims, which must contain no other files.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        # For each file: its modification time, when this process first saw that time, and when it last polled the file.
        self._seen: dict[str, tuple[int, float, float]] = {}

    def owner(self, name: str) -> Owner | None:
        """Return the current owner of a name, as far as a single listing can tell; None if there is none.

        Heartbeats older than ten minutes count as expired, which assumes that clocks differ by less than that. The
        answer may therefore be wrong; only `try_acquire` is reliable.
        """
        recent = time.time_ns() - _LONG_AGO_SECONDS * 10**9
        alive = (claim for claim in self._claims(name) if not self._is_dead(claim))
        return next((c.owner or _UNKNOWN for c in alive if c.modified > recent or (c.owner and c.owner.is_here)), None)

    def names(self) -> list[str]:
        """Return all names that have claims, including names whose owners are dead."""
        claims = (file.name for file in self._folder.files() if file.name.endswith(".json"))
        return sorted({claim.rpartition(".")[0].rpartition(".")[0] for claim in claims})

    def break_dead(self, name: str) -> None:
        """Remove the claims that dead owners have on a name."""
        for claim in self._claims(name):
            if self._is_dead(claim):
                self._remove(claim)

    def try_acquire(self, name: str) -> "Lease | Owner":
        """Claim a name. If the name is already held, return its owner instead.

        To wait for the name, call again after a random pause, so that two processes that withdrew together do not
        collide again.
        """
        # Only old partial files are removed, since another process may be writing a claim at this moment.
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
            # If the file of this claim is missing, this process was suspended for so long that another process broke
            # the claim.
            if not others and any(claim.file == file for claim in claims):
                return Lease(self._folder, file, broken)
            self._folder.remove(file)
        except BaseException:
            _held.discard(file)
            raise
        _held.discard(file)
        return (others[0].owner if others else None) or _UNKNOWN

    def _claims(self, name: str) -> list[_Claim]:
        """Return the claims on a name, including those of dead owners."""
        claims = []
        files = self._folder.files()
        modified = {file.name: file.modified for file in files}
        for file in files:
            if file.name.startswith(f"{name}.") and file.name.endswith(".json"):
                data = self._folder.read(file.name)
                if data is not None:  # otherwise the claim was released after the listing
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
        # If this process has not polled recently, for example because of a storage outage, restart the expiry clock.
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
        broken: the dead owners whose claims on the name were removed first.
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

        While heartbeats succeed, this reads no file. After a long suspension it reads the claim, because the heartbeat
        thread may not have noticed the loss yet.
        """
        if not self._lost.is_set() and _clock() - self._beaten > EXPIRY_SECONDS - HEARTBEAT_SECONDS:
            self.confirm()
        return self._lost.is_set()

    def confirm(self) -> bool:
        """Read the claim, and return whether this process still holds it.

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
        self._heart.join(timeout=1.0)  # the thread may hang in a request to a server that does not respond
        try:
            with impatient(), suppress(StorageError):  # the claim expires even if its file remains
                self._folder.remove(self._file)
                self._folder.remove(_beat_of(self._file))
        finally:
            _held.discard(self._file)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A failed heartbeat is not retried, because no claim expires during a storage outage.
            with impatient(), suppress(Exception):
                if not self.confirm():
                    return
                # Write a separate file, because rewriting the claim could undo its removal by another process.
                self._folder.write(_beat_of(self._file), b"")


def _beat_of(claim: str) -> str:
    """Return the name of a claim's heartbeat file, whose modification time is the time of the last heartbeat."""
    return claim.removesuffix(".json") + ".beat"


def _clock() -> float:
    """Return the time of a monotonic clock in seconds. On Linux, this clock keeps running while the machine sleeps."""
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
    """Return an id of this machine. It changes at every boot and differs between containers (PID namespaces)."""
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
    """Return whether a process on this machine is alive.

    Args:
        pid: the process id.
        started: when the process started, in clock ticks since boot. It distinguishes the process from a later one with
            the same id; 0 means that it is unknown.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not started or _start_of(pid) in (None, started)
    return not started or _start_of(pid) == started


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is a zombie or /proc cannot be read."""
    # psutil (7.2) is not used because its `create_time` adds a boot time that changes when the clock is set, for
    # example by NTP. A live owner would then be mistaken for another process. Ticks since boot, which claims record,
    # do not change.
    try:
        # The name, in parentheses, may contain spaces. The state is field 3, and the start time is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])

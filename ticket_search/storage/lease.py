"""Claims that one process at a time holds, on any storage, and that outlive no process.

To claim a name is to write a file of one's own beside it and then to look: whoever is alone there holds it, whoever is
not withdraws. Of two claims the later to be written sees the earlier, so at most one is alone; this needs no lock
service and no conditional write, only that a listing shows what was written before it. A dead owner's file is removed
by its own name, so that two who find it at once cannot remove a third one's.

An owner is dead when its process is no longer there, which is known on the same machine, or when its heartbeat has not
been seen to change for `EXPIRY_SECONDS` by the clock of whoever watches: clocks are never compared between machines.
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

#: Between two signs of life of an owner.
HEARTBEAT_SECONDS = 15.0
#: An owner on another machine that gave no sign of life for so long is dead.
EXPIRY_SECONDS = 60.0
_LONG_AGO_SECONDS = 600
#: The claims that this process makes or holds. Any other that names it was given up, and could not be removed.
_held: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim.

    Attributes:
        host: its name, for people.
        machine: tells machines, and containers on one machine, apart; changes when it is started anew.
        pid: of the process.
        started: of the process, in the system's ticks, since process ids come again; 0 where that is unknown.
        since: when it claimed, in Unix seconds of its own clock; for people.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: float

    @property
    def is_here(self) -> bool:
        """Whether the process was started on this machine, so that it is known at once whether it lives."""
        return self.machine == _machine()

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {when})"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    file: str
    modified: int
    owner: Owner | None  # None: it cannot be read, so only its heartbeat tells


class Leases:
    """The claims in a folder.

    Args:
        folder: that holds the claims, and nothing else.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        # file -> its time of modification, when that was first seen, and when it was last looked at.
        self._seen: dict[str, tuple[int, float, float]] = {}

    def owner(self, name: str) -> Owner | None:
        """Who holds a name now, as far as one look can tell; None if nobody does.

        For people: a heartbeat of ten minutes ago is taken for none, which trusts the clocks to differ by less.
        """
        recent = time.time_ns() - _LONG_AGO_SECONDS * 10**9
        alive = (claim for claim in self._claims(name) if not self._is_dead(claim))
        return next((c.owner or _UNKNOWN for c in alive if c.modified > recent or (c.owner and c.owner.is_here)), None)

    def names(self) -> list[str]:
        """Every name that has a claim, dead owners' included."""
        claims = (file.name for file in self._folder.files() if file.name.endswith(".json"))
        return sorted({claim.rpartition(".")[0].rpartition(".")[0] for claim in claims})

    def break_dead(self, name: str) -> None:
        """Remove the claims of dead owners on a name."""
        for claim in self._claims(name):
            if self._is_dead(claim):
                self._remove(claim)

    def try_acquire(self, name: str) -> "Lease | Owner":
        """Claim a name, unless somebody holds it: then say who."""
        # Somebody else may be writing a claim at this moment.
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
            # Without its own file, this process has slept so long that it was taken for dead.
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
        """Claim a name, waiting for whoever holds it; None as soon as `until()` says that there is no more need."""
        while isinstance(lease := self.try_acquire(name), Owner):
            # At random, so that two who withdrew at once do not claim at once again.
            time.sleep(poll_seconds * random.uniform(0.5, 1.0))
            if until():
                return None
        return lease

    def _claims(self, name: str) -> list[_Claim]:
        """The claims on a name; those of dead owners too."""
        claims = []
        files = self._folder.files()
        modified = {file.name: file.modified for file in files}
        for file in files:
            if file.name.startswith(f"{name}.") and file.name.endswith(".json"):
                data = self._folder.read(file.name)
                if data is not None:  # not released meanwhile
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
        # Who has not looked for a while, its storage being out of reach say, does not know what it missed.
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
        broken: the dead owners whose claims were in the way and were removed.
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
        """Whether another process has taken this one for dead, and the name from it.

        Costs nothing while the heart beats; after a long suspension, which the heart may not have noticed yet, it is
        looked up.
        """
        if not self._lost.is_set() and _clock() - self._beaten > EXPIRY_SECONDS - HEARTBEAT_SECONDS:
            self.confirm()
        return self._lost.is_set()

    def confirm(self) -> bool:
        """Look whether the name is still this process's.

        Raises:
            StorageError: that cannot be known.
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
        self._heart.join(timeout=1.0)  # a server that is silent may keep it
        try:
            with impatient(), suppress(StorageError):  # nobody takes it for held any more, this process included
                self._folder.remove(self._file)
                self._folder.remove(_beat_of(self._file))
        finally:
            _held.discard(self._file)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # Storage that is out of reach for the owner is so for the others; the next beat is the next attempt.
            with impatient(), suppress(Exception):
                if not self.confirm():
                    return
                # A file of its own: writing the claim anew could undo its removal by somebody else.
                self._folder.write(_beat_of(self._file), b"")


def _beat_of(claim: str) -> str:
    """The file whose time of modification is the last beat of a claim's owner."""
    return claim.removesuffix(".json") + ".beat"


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
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
    """Names this machine since its start; each container on it has its own process ids, and so its own name."""
    return _machine_of(os.getpid())


@cache
def _machine_of(pid: int) -> str:
    del pid  # a forked process may have moved into another namespace
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_running(pid: int, started: int = 0) -> bool:
    """Whether a process of this machine lives; one that may not be looked into does, if its number is in use."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return _start_of(pid) in (None, started)
    return not started or _start_of(pid) == started


def _start_of(pid: int) -> int | None:
    """When a process was started, in ticks; None if there is none that may be looked into, or a zombie, or no /proc."""
    try:
        # The name, in brackets, may hold spaces. The state is field 3, the start is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])

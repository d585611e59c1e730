"""A content-addressed store of finished levels: each under its key, written whole or not at all, trained once."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ticket_search.errors import StoreError
from ticket_search.files import write_whole

_POLL_SECONDS = 0.2
_HEARTBEAT_SECONDS = 5.0
#: A lease whose owner has not been heard of for so long is broken.
_STALE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is stored under a key.

    Attributes:
        record: plain JSON data.
        tensors: name -> tensor, on the CPU.
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]


class LevelStore:
    """Entries in a folder that any number of processes, of any number of searches, share.

    Args:
        root: the folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, key: str) -> Entry | None:
        """The entry under a key, or None.

        Raises:
            StoreError: there is an entry that cannot be read.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()["record"])
                return Entry(record=record, tensors={name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"the store's entry {path} cannot be read: {error}; remove it to have it trained again"
            ) from error

    def save(self, key: str, entry: Entry) -> None:
        """Write an entry whole. An entry that is there already is replaced by an equal one."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
        write_whole(self._path(key), save(tensors, {"record": json.dumps(entry.record)}))

    def get_or_compute(self, key: str, compute: Callable[[], Entry]) -> tuple[Entry, bool]:
        """The entry under a key, computed here unless some process has done or is doing so.

        Returns:
            The entry, and whether it was reused rather than computed by this call.
        """
        while True:
            entry = self.load(key)
            if entry is not None:
                return entry, True
            with self._lease(key) as mine:
                # Its last owner may have finished between the look above and the lease.
                if mine and (entry := self.load(key)) is None:
                    entry = compute()
                    self.save(key, entry)
                    return entry, False
            if entry is None:
                time.sleep(_POLL_SECONDS)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.safetensors"

    @contextmanager
    def _lease(self, key: str) -> Iterator[bool]:
        """Yields whether this process alone may compute `key` until the block ends."""
        path = self._root / "leases" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _acquire(path):
            yield False
            return
        released = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, released), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            released.set()
            heart.join()
            path.unlink(missing_ok=True)


def _acquire(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        age = None
    if age is not None and age < _STALE_SECONDS:
        return False
    if age is not None:
        # Of several that find it stale, the rename lets one break it.
        aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        aside.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
    except FileExistsError:
        return False
    return True


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(_HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except FileNotFoundError:
            return

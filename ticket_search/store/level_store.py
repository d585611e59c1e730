"""A content-addressed store of finished levels: each under its key, written whole or not at all, trained once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ticket_search.errors import StoreError
from ticket_search.files import write_whole

_POLL_SECONDS = 0.2


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
                record = json.loads((file.metadata() or {})["record"])
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
        if (entry := self.load(key)) is not None:
            return entry, True
        lock = self._root / "locks" / key
        lock.parent.mkdir(parents=True, exist_ok=True)
        # The kernel lets go of the lock of a process that dies.
        with FileLock(lock).acquire(poll_interval=_POLL_SECONDS):
            entry = self.load(key)
            reused = entry is not None
            if entry is None:
                entry = compute()
                self.save(key, entry)
            # Whoever waits on this file, or makes it anew, finds the entry. Without one, the file must stay.
            lock.unlink(missing_ok=True)
            return entry, reused

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.safetensors"

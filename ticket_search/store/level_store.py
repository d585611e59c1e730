"""A store of finished levels, keyed by a digest of their inputs. Each level is trained once and written atomically."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ticket_search.errors import StorageError
from ticket_search.storage.folder import Location, open_folder
from ticket_search.storage.lease import Lease, Leases, Owner

#: The longest time, in seconds, to wait before asking again for an entry that another process is computing.
_POLL_SECONDS = 0.2
_POLL_SECONDS_REMOTE = 1.0
_DAMAGED = "damaged"
_FORMAT = "ticket_search.entry.1"
#: The placeholder for the checksum while the checksum is computed.
_ZEROS = "0" * 64

Log = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The value stored under a key.

    Attributes:
        record: JSON-serializable data.
        tensors: tensors on the CPU, by name.
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]


def encode(entry: Entry) -> tuple[bytes, memoryview]:
    """Encode an entry as a safetensors file whose metadata contains the record and the SHA-256 digest of the file.

    The digest is computed with 64 zeros in place of the digest itself.

    Returns:
        The header and the tensor values, as two parts, because joining them would copy gigabytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
    metadata = {"format": _FORMAT, "record": json.dumps(entry.record), "sha256": _ZEROS}
    data: bytes = save(tensors, metadata)
    header, values = _split(data)
    return header.replace(_checksum_field(_ZEROS), _checksum_field(hashlib.sha256(data).hexdigest()), 1), values


def decode(data: bytes) -> Entry:
    """Parse a file that `encode` produced.

    Raises:
        ValueError: the data is not an entry, is incomplete, or has been modified.
    """
    header, values = _split(data)
    try:
        metadata = json.loads(header[8:])["__metadata__"]
        checksum, record = metadata["sha256"], metadata["record"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("it is incomplete or not an entry") from None
    # The header and the values are hashed separately, because replacing the checksum in `data` would copy gigabytes.
    actual = hashlib.sha256(header.replace(_checksum_field(checksum), _checksum_field(_ZEROS), 1))
    actual.update(values)
    if actual.hexdigest() != checksum:
        raise ValueError("its checksum does not match its content")
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, but this version reads {_FORMAT!r}")
    try:
        return Entry(record=json.loads(record), tensors=load(data))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _split(data: bytes) -> tuple[bytes, memoryview]:
    """Split a safetensors file into its header (an 8-byte length, then JSON) and the values of its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:end], memoryview(data)[end:]


def _checksum_field(value: str) -> bytes:
    # Quotes within the record are escaped, so this text occurs exactly once, in the header.
    return f'"sha256":"{value}"'.encode()


class LevelStore:
    """A folder of entries, which any number of processes and searches can share.

    Args:
        root: the folder, local or in object storage; the first write creates it.
        log: receives the events ``entry_damaged`` (with ``key``, ``path`` and ``reason``) and ``lease_broken`` (with
            ``key`` and ``owner``).
        note: the name of a file that the folder must contain. If the file is missing, the store must have been deleted,
            so `claim` and every write raise an error. None disables this check.
    """

    def __init__(self, root: Location, log: Log = lambda event, **fields: None, *, note: str | None = None) -> None:
        self._root = open_folder(root)
        self._note = note
        self._leases = Leases(self._root / "leases")
        self._log = log

    def load(self, key: str) -> Entry | None:
        """Return the entry under a key, or None. A damaged entry is moved aside, logged, and counts as absent."""
        return self._read(_entry_name(key), key)

    def keys(self) -> set[str]:
        """Return the keys of all entries, by listing the whole store."""
        stems = (
            (file.name, file.name.rpartition("/")[2].partition(".")[0]) for file in self._root.files(recursive=True)
        )
        return {stem for name, stem in stems if name == _entry_name(stem)}

    def damaged(self, key: str) -> str | None:
        """Return the location of the last damaged entry that was moved aside for a key; None if there is none."""
        aside = [file.name for file in (self._root / _DAMAGED).files() if file.name.startswith(f"{key}.")]
        return (self._root / _DAMAGED).place(aside[-1]) if aside else None

    def save(self, key: str, entry: Entry) -> None:
        """Write an entry. If the key already has an entry, replace it; this is harmless, because the two are equal.

        Raises:
            StorageError: the entry cannot be written, or the store was deleted.
        """
        self._write(_entry_name(key), entry)

    def claim(self, key: str) -> "Claim | Entry | None":
        """Return the entry under a key, or else claim the right to compute it, without waiting.

        Returns:
            The entry; or a claim, to be used as a context manager; or None if another process, or another trajectory in
            this process, is computing the entry. In that case, call again after `poll_seconds`.

        Raises:
            StorageError: the store was deleted.
        """
        if (entry := self.load(key)) is not None:
            return entry
        self._check_note()
        lease = self._leases.try_acquire(key)
        if isinstance(lease, Owner):
            return None
        with ExitStack() as held:
            held.enter_context(lease)
            for owner in lease.broken:
                self._log("lease_broken", key=key, owner=str(owner))
            if (entry := self.load(key)) is not None:
                return entry
            for name in (_entry_name(key), _checkpoint_name(key)):
                self._root.sweep(name)
            return Claim(self, key, lease, held.pop_all())

    @property
    def poll_seconds(self) -> float:
        """The time to wait before the next `claim` of a key that is being computed elsewhere, in seconds.

        The time is random, so that two processes that withdrew at the same moment do not collide again.
        """
        return (_POLL_SECONDS if self._root.grows else _POLL_SECONDS_REMOTE) * random.uniform(0.5, 1.0)

    def tidy(self, key: str) -> None:
        """Remove the claim and the checkpoint that a process left behind if it died after saving the entry."""
        self._leases.break_dead(key)
        self.checkpoint(key).remove()

    def checkpoint(self, key: str) -> "Checkpoint":
        """Return the checkpoint of a key, which saves the state of an unfinished computation."""
        return Checkpoint(self, key)

    def _write(self, name: str, entry: Entry) -> None:
        self._check_note()
        self._root.write(name, encode(entry))

    def _check_note(self) -> None:
        """Check that the store was not deleted; recreating it would hide the loss of earlier levels."""
        if self._note is not None and self._root.read(self._note) is None:
            raise StorageError(
                f"the level store {str(self._root)!r} was deleted or replaced while the search was running; restore it "
                "before you resume; otherwise, the tickets of finished trajectories cannot be exported"
            )

    def _read(self, name: str, key: str) -> Entry | None:
        data = self._root.read(name)
        if data is None:
            return None
        try:
            return decode(data)
        except ValueError as error:
            aside = f"{_DAMAGED}/{name.rpartition('/')[2]}.{time.time_ns()}"
            self._root.write(aside, data)
            # Another process may already have moved the damaged file aside and trained the level again.
            if (current := self._root.read(name)) != data:
                return None if current is None else decode(current)
            self._root.remove(name)
            self._log("entry_damaged", key=key, path=self._root.place(aside), reason=str(error))
            return None


class Claim(AbstractContextManager["Claim"]):
    """The exclusive right to compute the entry of a key until the ``with`` block ends; see `LevelStore.claim`."""

    def __init__(self, store: LevelStore, key: str, lease: Lease, held: ExitStack) -> None:
        self._store = store
        self._key = key
        self._lease = lease
        self._held = held

    def save(self, entry: Entry) -> Entry:
        """Store the computed entry. The claim remains in place until the block ends.

        Returns:
            The entry in the store. It comes from another process if this process was suspended for so long that its
            claim expired and the other process computed the entry.
        """
        if not self._lease.confirm() and (theirs := self._store.load(self._key)) is not None:
            return theirs
        self._store.save(self._key, entry)
        return entry

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


class Checkpoint:
    """The checkpoint of a computation in a store; see `LevelStore.checkpoint`."""

    def __init__(self, store: LevelStore, key: str) -> None:
        self._store = store
        self._key = key
        self._name = _checkpoint_name(key)

    def load(self) -> Entry | None:
        """Return the last checkpoint, or None. A damaged checkpoint is moved aside, logged, and counts as absent."""
        return self._store._read(self._name, self._key)

    def save(self, entry: Entry) -> None:
        """Write a checkpoint, which replaces the previous one.

        Raises:
            StorageError: the checkpoint cannot be written, or the store was deleted.
        """
        self._store._write(self._name, entry)

    def remove(self) -> None:
        """Remove the checkpoint after the computation has finished."""
        self._store._root.remove(self._name)


def _entry_name(key: str) -> str:
    return f"{key[:2]}/{key}.safetensors"


def _checkpoint_name(key: str) -> str:
    return f"checkpoints/{key}.safetensors"

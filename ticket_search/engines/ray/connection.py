"""A connection to Ray: to a cluster, or to a Ray of our own; and calls of functions on it."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

import psutil
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ticket_search.config.search import SearchSpec
from ticket_search.engines.address import cluster_address
from ticket_search.errors import SpecError, TicketSearchError

#: Bytes; results are a few kB, and Ray would take a third of a laptop's memory.
_OBJECT_STORE_BYTES = 256 * 1024**2
_QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_WATCH_SECONDS = 1.0
#: Ray starts within 2 to 4 seconds; an interrupted search ends within ten.
_DEFER_SECONDS = 5.0
#: For a node to start a process and look at its storage.
_ANSWER_SECONDS = 180.0

T = TypeVar("T")


@contextmanager
def connect(address: str | None, *, room: int = 0) -> Iterator[None]:
    """A connection to Ray: the one there is, a cluster's, or a Ray of our own on this machine for the while.

    Args:
        address: of a cluster, e.g. ``auto`` on one of its nodes; None takes ``RAY_ADDRESS``, else a Ray of our own.
        room: bytes that will be shared; a Ray of our own makes room for them.
    """
    if ray.is_initialized():
        yield
        return
    try:
        with _signals_deferred(), _raylet_silenced():
            cluster = cluster_address(address)
            if cluster:
                _join(cluster)
            else:
                _start(_OBJECT_STORE_BYTES + room)
        yield
    finally:
        ray.shutdown()


def _join(cluster: str) -> None:
    _check_reachable(cluster)
    try:
        ray.init(cluster, **_QUIETLY)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpecError(
            f"cannot connect to the Ray cluster at {cluster!r}: {error}; if it asks for a token, set "
            "RAY_AUTH_MODE=token and the token"
        ) from error


def _start(store_bytes: int) -> None:
    with _on_loopback():
        try:
            # Without "local", Ray would join whatever cluster happens to run on this machine.
            ray.init("local", include_dashboard=False, object_store_memory=store_bytes, **_QUIETLY)
        except ValueError as error:
            raise SpecError(f"Ray cannot set {store_bytes / 1e9:.1f} GB aside for the data sets: {error}") from error
    _check_loopback()


def _check_loopback() -> None:
    """Check that `_on_loopback` worked: it relies on a private constant, which a later Ray may stop reading.

    Raises:
        TicketSearchError: other machines can reach the Ray that was just started.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
    addresses.add(ray.get_runtime_context().gcs_address.rpartition(":")[0])
    if exposed := sorted(address for address in addresses if not ip_address(address.strip("[]")).is_loopback):
        raise TicketSearchError(
            f"Ray {ray.__version__} listens on {exposed[0]}, where other machines reach it, instead of on 127.0.0.1; "
            "it was shut down. Install a version of Ray that this package allows, or use --engine processes"
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started within the block cannot be reached from other machines.

    On Linux Ray takes an address that others reach, whatever it is asked for; where clusters are not to be had, as on
    macOS unless its user wants them, it takes 127.0.0.1, and this is where it looks that up.
    """
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _raylet_silenced() -> Iterator[None]:
    """Keep the raylets' messages off the terminal of a driver that connects within the block.

    In spite of `log_to_driver=False` Ray prints 20 lines for each worker that dies, and advice on how many to start.
    The tables have what matters: that a worker died.
    """
    listen = ray_worker.listen_error_messages
    ray_worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = listen


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Handle a SIGINT or SIGTERM that arrives within the block after it, by the handler from before the block.

    `ray.init` installs handlers of its own that end the process with exit code 1 or 15. An exception from ours would be
    raised somewhere in Ray's start, which loses it in a callback or leaves processes behind. A start that hangs is
    interrupted all the same: a second signal, or `_DEFER_SECONDS` after the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 1:
            timer.start()
        elif callable(handler := handlers[signal.Signals(number)]):
            handler(number, frame)

    timer = threading.Timer(
        _DEFER_SECONDS, lambda: signal.pthread_kill(threading.main_thread().ident or 0, received[0])
    )
    timer.daemon = True
    handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    install = signal.signal
    signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        timer.cancel()
        signal.signal = install
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


@contextmanager
def ends_with_ray() -> Iterator[None]:
    """Without the processes of Ray's on this machine Tune would wait forever: end, and say so.

    Raises:
        TicketSearchError: one of them is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    gone, over = threading.Event(), threading.Event()
    processes = own_processes()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            if not all(map(_is_ray_process, processes)):
                gone.set()
                # A real signal ends whatever the main thread waits for.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    threading.Thread(target=watch, name="ray_watch", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not gone.is_set():
            raise
        raise TicketSearchError("Ray's own processes on this machine are gone: killed, or out of memory") from None
    finally:
        over.set()


def own_processes() -> list[psutil.Process]:
    """The processes that our own Ray cannot do without; none where we are connected to a cluster."""
    return [child for child in psutil.Process().children() if _is_ray_process(child)]


def _is_ray_process(process: psutil.Process) -> bool:
    try:
        return process.name() in ("raylet", "gcs_server") and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def on_each_worker(
    function: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    spec: SearchSpec,
    done: str,
    say: Callable[[str], None],
) -> list[T]:
    """Call a function with each arguments in Ray's workers, each with the resources of a trajectory.

    Args:
        function: of this package.
        calls: the arguments of each.
        spec: a search; a call whose worker died is made again as often as its ``max_failures``.
        done: what a call has done, for the lines that are said.
        say: told of each call that has ended.

    Raises:
        TicketSearchError: a call raised, or its workers died; no other is waited for.
    """
    resources = {"num_cpus": spec.resources.cpus, "num_gpus": spec.resources.gpus}
    remote: Any = ray.remote(_call).options(**resources, max_retries=spec.search.max_failures)
    with ends_with_ray():
        results = [remote.remote(function, arguments) for arguments in calls]
        waiting = list(results)
        try:
            while waiting:
                ended, waiting = ray.wait(waiting)
                ray.get(ended)
                say(f"{done} {len(results) - len(waiting)} of {len(results)}")
            found: list[T] = ray.get(results)
        except ray.exceptions.RayTaskError as error:
            raise TicketSearchError(_said(error)) from error
        except ray.exceptions.RayError as error:
            raise TicketSearchError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        finally:
            for result in waiting:
                ray.cancel(result, force=True)
        return found


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    # Ray takes no built-in function, nor a decorated one.
    return function(*arguments)


def on_each_other_node(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call a function once on every node but this one, side by side; what a trajectory needs is not taken for it.

    Args:
        function: of this package.
        arguments: of each call.

    Raises:
        SpecError: a call raised; what, and where. A node that is lost meanwhile is passed over.
    """
    here = ray.get_runtime_context().get_node_id()
    calls = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            calls[remote.remote(*arguments)] = node["NodeManagerAddress"]
    _, silent = ray.wait(list(calls), num_returns=len(calls), timeout=_ANSWER_SECONDS) if calls else ([], [])
    if silent:
        nodes = ", ".join(calls[call] for call in silent)
        raise SpecError(f"no answer from {nodes} within {_ANSWER_SECONDS:.0f} s; does the storage hang there?")
    for call, address in calls.items():
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise SpecError(f"node {address}: {_said(error)}") from error
        except ray.exceptions.RayError:
            continue


@dataclass(frozen=True)
class _Shared:
    """What lies in Ray's object store; call it, in any worker, to read it from its node's memory."""

    reference: Any

    def __call__(self) -> dict[Any, Any]:
        return ray.get(self.reference)  # type: ignore[no-any-return]


def share(data: dict[Any, Any]) -> Callable[[], dict[Any, Any]]:
    """Put data where all processes of a node read them from one piece of memory; Ray copies it to other nodes.

    Args:
        data: what is in numpy arrays is shared, the rest is not.

    Returns:
        A function that gives a worker the data.
    """
    return _Shared(ray.put(data))


def _said(error: ray.exceptions.RayTaskError) -> str:
    cause = error.cause
    return str(cause) if isinstance(cause, TicketSearchError) else f"{type(cause).__name__}: {cause}"


def _check_reachable(address: str) -> None:
    """Notice within seconds what Ray takes minutes to."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise SpecError(f"--address {address!r}: give host:port of a cluster's head, or auto on one of its nodes")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise SpecError(f"cannot reach a Ray cluster at {address!r}: {error}") from None

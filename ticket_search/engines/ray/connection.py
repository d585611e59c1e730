"""Connects to a Ray cluster or starts a local one, and calls functions on it."""

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
from ticket_search.config.user_error import headline
from ticket_search.engines.address import cluster_address
from ticket_search.errors import SpecError, TicketSearchError

#: The size in bytes of a local cluster's object store, without the shared data. By default, Ray would reserve a third
#: of the memory, but results take only a few kB.
_OBJECT_STORE_BYTES = 256 * 1024**2
_QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_WATCH_SECONDS = 1.0
#: How long a signal may be deferred, in seconds. Ray takes 2 to 4 seconds to start, and an interrupted search should
#: end within ten.
_DEFER_SECONDS = 5.0
#: How long to wait for a node to start a process and check its storage, in seconds.
_ANSWER_SECONDS = 180.0

T = TypeVar("T")


@contextmanager
def connect(address: str | None, *, room: int = 0) -> Iterator[None]:
    """Connect to Ray until the block ends: use an existing connection, join a cluster, or start a local one.

    Args:
        address: the address of a cluster, e.g. ``auto`` on one of its nodes. None means the value of
            ``RAY_ADDRESS`` if it is set, and otherwise a local cluster.
        room: the size in bytes of the data that will be shared. A local cluster reserves memory for them.

    Raises:
        SpecError: the cluster cannot be reached, or there is too little memory for the shared data.
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
            f"cannot connect to the Ray cluster at {cluster!r}: {error}; if the cluster requires a token, set "
            "RAY_AUTH_MODE=token and put the token into ~/.ray/auth_token"
        ) from error


def _start(store_bytes: int) -> None:
    with _on_loopback():
        try:
            # Without "local", Ray would join any cluster that happens to run on this machine.
            ray.init("local", include_dashboard=False, object_store_memory=store_bytes, **_QUIETLY)
        except ValueError as error:
            raise SpecError(f"Ray cannot reserve {store_bytes / 1e9:.1f} GB for the data sets: {error}") from error
    _check_loopback()


def _check_loopback() -> None:
    """Check that `_on_loopback` worked, since it relies on a private constant that later versions of Ray may ignore.

    Raises:
        TicketSearchError: other machines can reach the Ray cluster that was just started.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
    addresses.add(ray.get_runtime_context().gcs_address.rpartition(":")[0])
    if exposed := sorted(address for address in addresses if not ip_address(address.strip("[]")).is_loopback):
        raise TicketSearchError(
            f"Ray {ray.__version__} listens on {exposed[0]}, where other machines can reach it, instead of on "
            "127.0.0.1, so it was shut down. Install a version of Ray that this package allows, or use "
            "--engine processes"
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray cluster that is started within the block listen only on 127.0.0.1.

    On Linux, Ray by default listens on an address that other machines can reach. It listens on 127.0.0.1 if multi-node
    clusters are disabled, as they are by default on macOS. Ray reads this setting from a private constant.
    """
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _raylet_silenced() -> Iterator[None]:
    """Keep raylet messages off the terminal of a driver that connects within the block.

    Even with `log_to_driver=False`, Ray prints 20 lines for each worker that dies, and advice on the number of workers.
    The tables already record that a worker died.
    """
    listen = ray_worker.listen_error_messages
    ray_worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = listen


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the end of the block, and keep the handlers that were installed before it.

    `ray.init` would install its own handlers, which end the process with exit code 1 or 15. If our handler raised an
    exception while Ray starts, Ray might lose the exception in a callback or leave processes behind. A start that hangs
    can still be interrupted: by a second signal, or `_DEFER_SECONDS` after the first one.
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
    """Interrupt the block if a process of the local Ray cluster dies, because Tune would then wait forever.

    Raises:
        TicketSearchError: a process of the local Ray cluster has died.
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
                # Only a signal interrupts a blocking call in the main thread.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    threading.Thread(target=watch, name="ray_watch", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not gone.is_set():
            raise
        raise TicketSearchError(
            "Ray's processes on this machine have died; they were killed or ran out of memory"
        ) from None
    finally:
        over.set()


def own_processes() -> list[psutil.Process]:
    """Return the processes of the local Ray cluster, or an empty list if this process has joined another cluster."""
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
    """Call a function in Ray's workers; see `Engine.call`.

    Args:
        function: a function of this package.
        calls: the arguments of each call.
        spec: the search; its ``max_failures`` limits how many times a call is retried when its worker dies.
        done: the verb at the start of each progress line, such as ``trained`` in "trained 3 of 9".
        say: receives a progress line whenever a call ends.

    Raises:
        TicketSearchError: a call raised an error, or its workers died too often. The other calls are abandoned.
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
            raise TicketSearchError(headline(error)) from error
        finally:
            for result in waiting:
                ray.cancel(result, force=True)
        return found


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    # This wrapper exists because Ray cannot turn a built-in or decorated function into a remote function.
    return function(*arguments)


def on_each_other_node(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call a function once on every node but this one, in parallel; the calls take no resources from trajectories.

    A node that is lost during its call is ignored.

    Args:
        function: a function of this package.
        arguments: the arguments of each call.

    Raises:
        SpecError: a call raised an error, or did not return in time. The message names the node.
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
        raise SpecError(f"no answer from {nodes} within {_ANSWER_SECONDS:.0f} s; check that they can reach the storage")
    for call, address in calls.items():
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise SpecError(f"node {address}: {_said(error)}") from error
        except ray.exceptions.RayError:
            continue


@dataclass(frozen=True)
class _Shared:
    """A handle to data in Ray's object store. Any worker can call it to read the data from its node's memory."""

    reference: Any

    def __call__(self) -> dict[Any, Any]:
        return ray.get(self.reference)  # type: ignore[no-any-return]


def share(data: dict[Any, Any]) -> Callable[[], dict[Any, Any]]:
    """Put data into Ray's object store. The processes of a node share one copy, and Ray copies the data to other nodes.

    Args:
        data: the data. The processes of a node share the numpy arrays; each process gets its own copy of everything
            else.

    Returns:
        A handle that workers call to get the data.
    """
    return _Shared(ray.put(data))


def _said(error: ray.exceptions.RayTaskError) -> str:
    cause = error.cause
    return str(cause) if isinstance(cause, TicketSearchError) else headline(cause)


def _check_reachable(address: str) -> None:
    """Check within seconds that an address can be reached, because Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise SpecError(f"--address {address!r}: give the host:port of a cluster's head, or auto on one of its nodes")
    if not port.isdecimal():  # an address without a port, such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise SpecError(f"cannot reach a Ray cluster at {address!r}: {error}") from None

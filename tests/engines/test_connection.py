"""A local Ray instance listens on loopback only, a signal can interrupt its start, and Ray's version is supported."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from packaging.requirements import Requirement

from ticket_search.engines.ray import connection
from ticket_search.errors import TicketSearchError

START = """
import re, subprocess, sys
from ticket_search.engines.ray.connection import connect, own_processes, ray

with connect(None):
    ray.get(ray.remote(lambda: 1).remote())
    processes = subprocess.check_output(["ps", "-eo", "pid=,ppid="], text=True)
    parents = dict(line.split() for line in processes.splitlines())

    def is_ours(pid):
        while pid in parents and pid != str(__import__("os").getpid()):
            pid = parents[pid]
        return pid in parents

    for line in subprocess.check_output(["ss", "-Hltnp"], text=True).splitlines():
        owners = re.findall(r'\\("([^"]+)",pid=(\\d+)', line)
        if any(is_ours(pid) for _, pid in owners):
            print(line.split()[3], *(name for name, _ in owners))
"""


@pytest.mark.skipif(
    not (shutil.which("ss") and shutil.which("ps")), reason="needs ss (from iproute2) and ps (from procps)"
)
def test_it_listens_on_loopback_only():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    said = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=120, env=environment)
    assert said.returncode == 0, said.stderr
    listening = [line.split(maxsplit=1) for line in said.stdout.splitlines()]
    assert {"gcs_server", "raylet"} <= {name for _, name in listening}
    for address, name in listening:
        assert address.rpartition(":")[0].strip("[]").removeprefix("::ffff:") in ("127.0.0.1", "::1"), (address, name)


@pytest.fixture
def started(monkeypatch):
    """A fake `ray` package that records the calls to `init` and `shutdown`. Tests may replace its `init`."""
    calls = []
    node, context = {"NodeManagerAddress": "127.0.0.1"}, SimpleNamespace(gcs_address="127.0.0.1:6379")
    fake = SimpleNamespace(
        init=lambda *_, **__: calls.append("init"),
        shutdown=lambda: calls.append("shutdown"),
        nodes=lambda: [node],
        is_initialized=lambda: False,
        get_runtime_context=lambda: context,
        __version__="2.99",
        node=node,
        context=context,
        calls=calls,
    )
    monkeypatch.setattr(connection, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


def test_a_ray_on_loopback_is_used(started):
    with connection.connect(None):
        assert started.calls == ["init"]
    assert started.calls == ["init", "shutdown"]


@pytest.mark.parametrize("which", ["node", "control service"])
def test_a_ray_that_other_machines_can_reach_is_shut_down(started, which):
    if which == "node":
        started.node["NodeManagerAddress"] = "10.0.0.7"
    else:
        started.context.gcs_address = "10.0.0.7:6379"
    with pytest.raises(
        TicketSearchError, match=r"^Ray 2\.99 listens on 10\.0\.0\.7, where other machines can reach it"
    ):
        connection.connect(None).__enter__()
    assert started.calls == ["init", "shutdown"]


def test_messages_of_the_raylets_do_not_reach_the_terminal(started):
    listen = connection.ray_worker.listen_error_messages
    during = []
    started.init = lambda *_, **__: during.append(connection.ray_worker.listen_error_messages)
    with connection.connect(None):
        assert during != [listen]
        assert during[0](None, None) is None
    assert connection.ray_worker.listen_error_messages is listen


@pytest.fixture
def interruptible():
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, as they do in a command, and restore the handlers at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_of_ray_interrupts_after_it(started, interruptible, number):
    def init(*_, **__):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ray's own `init` does
        os.kill(os.getpid(), number)
        started.calls.append("init")

    started.init = init
    with pytest.raises(KeyboardInterrupt):
        connection.connect(None).__enter__()
    assert started.calls == ["init", "shutdown"]
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_start_of_ray_that_hangs_can_be_interrupted(started, interruptible, monkeypatch):
    monkeypatch.setattr(connection, "_DEFER_SECONDS", 0.01)

    def init(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()  # returns when the deferred SIGTERM is sent again
        signal.pause()
        pytest.fail("the start of Ray continued")

    started.init = init
    with pytest.raises(KeyboardInterrupt):
        connection.connect(None).__enter__()
    assert started.calls == ["shutdown"]


@pytest.mark.parametrize("name", ["ray", "optuna"])
def test_the_installed_version_is_within_tested_bounds(name):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    bounds = [required.specifier for required in map(Requirement, every) if required.name == name]
    assert bounds
    for specifier in bounds:
        assert version(name) in specifier
        assert "999" not in specifier, f"{name} has no upper bound: {specifier}"


def test_the_private_names_that_the_package_uses_exist():
    assert isinstance(connection.ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert list(signature(connection.ray_worker.listen_error_messages).parameters) == ["worker", "threads_stopped"]
    for name in ("get_parent_population", "select_parent"):
        assert callable(getattr(optuna.samplers.NSGAIISampler, name))

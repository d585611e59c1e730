"""A Ray of our own: what it listens to, and that it is gone afterwards."""

import os
import shutil
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(not (shutil.which("ss") and shutil.which("ps")), reason="needs ss of iproute2 and ps of procps")
def test_it_listens_on_loopback_only():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    said = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=120, env=environment)
    assert said.returncode == 0, said.stderr
    listening = [line.split(maxsplit=1) for line in said.stdout.splitlines()]
    assert {"gcs_server", "raylet"} <= {name for _, name in listening}
    for address, name in listening:
        assert address.rpartition(":")[0].strip("[]").removeprefix("::ffff:") in ("127.0.0.1", "::1"), (address, name)

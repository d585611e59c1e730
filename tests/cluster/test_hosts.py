"""The simulated hosts of concurrent test runs on one machine are independent."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from claims import run
from hosts import Hosts

#: A script that starts two hosts, checks their connection, prints their names and addresses, and waits for a line.
RUN = """
import json, sys
from pathlib import Path
from hosts import Hosts

folder, claims = sys.argv[1:]
with Hosts(folder, Path(claims)) as hosts:
    for number in (1, 2):
        hosts.start(number)
    for number, other in ((1, 2), (2, 1)):
        done = hosts.ssh(number, f"hostname; exec 3<>/dev/tcp/{hosts.address(other)}/22")
        assert (done.returncode, done.stdout) == (0, f"{hosts.name(number)}\\n"), done.stderr
    print(json.dumps([hosts.name(n) for n in (1, 2)] + [hosts.address(n) for n in (1, 2)]), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def places(tmp_path):
    """A folder for the files of hosts, and a folder of claims that no other test uses."""
    folder = Path("/var/tmp") / f"ticket_search_{os.getpid()}_{time.monotonic_ns()}"
    folder.mkdir()
    yield folder, tmp_path / "claims"
    folder.rmdir()


@contextmanager
def started(*places):
    """Run `RUN` in another process, which is killed at the end of the block."""
    command = [sys.executable, "-c", RUN, *map(str, places)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}) as process:
        try:
            yield process
        finally:
            process.kill()


def ends_well(process):
    process.communicate("\n", timeout=60)
    return process.returncode == 0


def there():
    """Return two sets: the names of this machine's network namespaces, and those of its network links."""
    names = [line.split()[0] for line in run("ip netns list").stdout.splitlines()]
    return set(names), {link["ifname"] for link in json.loads(run("ip -json link").stdout)}


def test_concurrent_test_runs_are_independent(places):
    folder, claims = places
    with started(folder / "one", claims) as one, started(folder / "other", claims) as other:
        mine, theirs = (json.loads(process.stdout.readline()) for process in (one, other))
        assert not set(mine) & set(theirs)
        with Hosts(folder / "third", claims) as third:
            third.start(1)
            assert third.name(1) not in mine + theirs
            # Each run has its own network.
            assert len({address.rpartition(".")[0] for address in [*mine[2:], *theirs[2:], third.address(1)]}) == 3
        assert ends_well(one)
        # The two runs that have ended did not remove the hosts of the run that is still alive.
        assert set(theirs[:2]) <= there()[0]
        assert ends_well(other)
    namespaces, links = there()
    assert not {*mine[:2], *theirs[:2]} & namespaces
    assert not [link for link in links if link.startswith((mine[0][:8], theirs[0][:8]))]
    assert list(claims.glob("*.json")) == []


def test_the_next_run_removes_only_the_hosts_of_killed_runs(places):
    folder, claims = places
    with started(folder / "killed", claims) as killed, started(folder / "alive", claims) as alive:
        left, kept = (json.loads(process.stdout.readline()) for process in (killed, alive))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert set(left[:2]) <= there()[0]
        with Hosts(folder / "next", claims):
            namespaces, links = there()
            assert not set(left[:2]) & namespaces
            assert not [link for link in links if link.startswith(left[0][:8])]
            assert set(kept[:2]) <= namespaces
            assert not (folder / "killed").exists()
        assert ends_well(alive)


def test_a_tunnel_has_a_free_port(places):
    folder, claims = places
    with Hosts(folder / "hosts", claims) as hosts:
        hosts.start(1)
        tunnels = [hosts.tunnel(1, 22) for _ in range(2)]
        for process, _ in tunnels:
            process.terminate()
            process.wait()
    assert len({port for _, port in tunnels} | {22}) == 3

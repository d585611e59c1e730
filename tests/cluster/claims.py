"""Claims on private networks, so that the simulated hosts of concurrent test runs on one machine do not collide.

A test run claims an unused private /24 network. The names of the run's bridge and hosts are derived from this network,
so they are unique too. If a test run is killed before it can clean up, the next test run that makes a claim removes the
killed run's hosts, network and folder.
"""

import fcntl
import ipaddress
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
#: The default folder for claims. Only root can write to it. A reboot clears it, along with all network namespaces.
_CLAIMS = Path("/run/ticket_search_hosts")
_PRIVATE = [ipaddress.ip_network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


def run(command):
    """Run a system command; raise if it fails."""
    env = os.environ | {"PATH": PATH}
    return subprocess.run(shlex.split(command), check=True, capture_output=True, text=True, env=env)


@dataclass(frozen=True)
class Claim:
    """A private network that belongs to one test run.

    Attributes:
        network: the network's address range, a /24.
        file: the file that records the claim until it is released.
        folder: the folder that contains the files of the run's hosts. It is removed together with the hosts.
    """

    network: ipaddress.IPv4Network
    file: Path
    folder: Path

    @property
    def _prefix(self):
        return f"ts{self.network.network_address.packed[:3].hex()}"

    @property
    def bridge(self):
        """The name of the bridge between the hosts."""
        return f"{self._prefix}br"

    def host(self, number):
        """Return the name of a host. It also names a network interface, so it has at most 15 characters."""
        return f"{self._prefix}h{number}"

    @property
    def gateway(self):
        """This machine's address on the network."""
        return self.network[254]

    def hosts(self):
        """Return the names of the hosts that currently exist on this network."""
        listed = [line.split()[0] for line in run("ip netns list").stdout.splitlines()]
        return [name for name in listed if name.startswith(f"{self._prefix}h")]


def claim(folder, claims=None):
    """Remove the claims and hosts of dead processes. Then claim a network for this process and create its bridge."""
    with _locked(claims or _CLAIMS) as claims:
        for file in claims.glob("*.json"):
            left = json.loads(file.read_text())
            if _started(left["pid"]) != left["started"]:
                give_back(Claim(ipaddress.ip_network(left["network"]), file, Path(left["folder"])))
        network = _free_network()
        made = Claim(network, claims / f"{network.network_address}.json", Path(folder))
        # Create the bridge before recording the claim. If an unrelated bridge already has this name, the command fails
        # and no claim is recorded, so no later test run will remove that bridge.
        run(f"ip link add {made.bridge} type bridge")
        owner = {"pid": os.getpid(), "started": _started(os.getpid()), "network": str(network), "folder": str(folder)}
        aside = made.file.with_suffix(".part")
        aside.write_text(json.dumps(owner))
        aside.replace(made.file)
        run(f"ip addr add {made.gateway}/24 dev {made.bridge}")
        run(f"ip link set {made.bridge} up")
        return made


def give_back(claimed):
    """Remove a claim together with its hosts, its bridge and its folder."""
    for name in claimed.hosts():
        remove(name)
    _remove_link(claimed.bridge)
    shutil.rmtree(claimed.folder, ignore_errors=True)
    claimed.file.unlink()


def remove(name):
    """Remove a host and kill its processes."""
    for pid in run(f"ip netns pids {name}").stdout.split():
        with suppress(ProcessLookupError):  # the process has just exited
            os.kill(int(pid), signal.SIGKILL)
    run(f"ip netns del {name}")
    _remove_link(name)


def _remove_link(name):
    with suppress(subprocess.CalledProcessError):  # the link was removed with its namespace, or was never created
        run(f"ip link del {name}")


@contextmanager
def _locked(claims):
    claims.mkdir(mode=0o700, exist_ok=True)
    with (claims / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield claims


def _started(pid):
    """Return the start time of a process in clock ticks since boot, or None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _free_network():
    """Return a private /24 that overlaps no address or route of this machine."""
    routes = json.loads(run("ip -json -4 route show table all").stdout)
    used = [ipaddress.ip_network(route["dst"]) for route in routes if route.get("dst", "default") != "default"]
    for block in _PRIVATE:
        for _ in range(100):
            address = block.network_address + 256 * random.randrange(block.num_addresses // 256)
            network = ipaddress.ip_network(f"{address}/24")
            if not any(network.overlaps(other) for other in used):
                return network
    raise RuntimeError(f"found no private /24 outside this machine's routes: {', '.join(map(str, used))}")

"""Which network, and so which names, on this machine belong to which hosts of which test run.

Any number of test runs may have hosts on one machine at a time. A run claims a /24 that nothing here uses; the names of
its bridge and of its hosts are made from that network, so they are its own as well. What a run has left that did not
live to clear up is cleared by the next one that claims anything.
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
#: Root's alone, and empty after a restart of the machine, as are the namespaces.
_CLAIMS = Path("/run/ticket_search_hosts")
_PRIVATE = [ipaddress.ip_network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


def run(command):
    """A command of the system's, which has to succeed."""
    env = os.environ | {"PATH": PATH}
    return subprocess.run(shlex.split(command), check=True, capture_output=True, text=True, env=env)


@dataclass(frozen=True)
class Claim:
    """A network that belongs to some hosts.

    Attributes:
        network: the /24.
        file: says whose it is, for as long as it is.
        folder: of the hosts, which goes with them.
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
        """The name of a host: no hyphen, and short enough for a network interface, which has 15 characters."""
        return f"{self._prefix}h{number}"

    @property
    def gateway(self):
        """This machine's address on the network."""
        return self.network[254]

    def hosts(self):
        """The names of the hosts that are there."""
        listed = [line.split()[0] for line in run("ip netns list").stdout.splitlines()]
        return [name for name in listed if name.startswith(f"{self._prefix}h")]


def claim(folder, claims=None):
    """A `Claim` of this process, with its bridge; what dead processes have left is cleared."""
    with _locked(claims or _CLAIMS) as claims:
        for file in claims.glob("*.json"):
            left = json.loads(file.read_text())
            if _started(left["pid"]) != left["started"]:
                give_back(Claim(ipaddress.ip_network(left["network"]), file, Path(left["folder"])))
        network = _free_network()
        made = Claim(network, claims / f"{network.network_address}.json", Path(folder))
        # Before anything is written down: where somebody else has the bridge, this fails and nothing is cleared.
        run(f"ip link add {made.bridge} type bridge")
        owner = {"pid": os.getpid(), "started": _started(os.getpid()), "network": str(network), "folder": str(folder)}
        aside = made.file.with_suffix(".part")
        aside.write_text(json.dumps(owner))
        aside.replace(made.file)
        run(f"ip addr add {made.gateway}/24 dev {made.bridge}")
        run(f"ip link set {made.bridge} up")
        return made


def give_back(claimed):
    """Remove the hosts of a claim, their network, their folder and the claim."""
    for name in claimed.hosts():
        remove(name)
    _remove_link(claimed.bridge)
    shutil.rmtree(claimed.folder, ignore_errors=True)
    claimed.file.unlink()


def remove(name):
    """Remove a host, with all that runs there."""
    for pid in run(f"ip netns pids {name}").stdout.split():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(int(pid), signal.SIGKILL)
    run(f"ip netns del {name}")
    _remove_link(name)


def _remove_link(name):
    with suppress(subprocess.CalledProcessError):  # it went with the namespace, or was never made
        run(f"ip link del {name}")


@contextmanager
def _locked(claims):
    claims.mkdir(mode=0o700, exist_ok=True)
    with (claims / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield claims


def _started(pid):
    """When a process was started, in ticks since the machine was; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _free_network():
    """A private /24 that no address and no route of this machine touches."""
    routes = json.loads(run("ip -json -4 route show table all").stdout)
    used = [ipaddress.ip_network(route["dst"]) for route in routes if route.get("dst", "default") != "default"]
    for block in _PRIVATE:
        for _ in range(100):
            address = block.network_address + 256 * random.randrange(block.num_addresses // 256)
            network = ipaddress.ip_network(f"{address}/24")
            if not any(network.overlaps(other) for other in used):
                return network
    raise RuntimeError(f"no private /24 is free beside the routes to {', '.join(map(str, used))}")

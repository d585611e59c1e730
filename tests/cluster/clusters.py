"""A cluster of simulated hosts, started from the shipped cluster file, and the commands that a user would run on it."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from hosts import Hosts

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "cluster" / "on_prem.yaml"
_COUNT_NODES = "import ray; ray.init('auto', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"


class Cluster:
    """A cluster of simulated hosts. This machine acts as the user's machine, from which commands are run.

    Args:
        hosts: the simulated hosts, which are already running.
        folder: the folder for the user's home, the filled-in cluster file and the storage that all hosts share.
    """

    def __init__(self, hosts, folder):
        self.hosts = hosts
        self.home, self.shared = folder / "home", folder / "shared"
        self.file = folder / "on_prem.yaml"
        self._env = os.environ | {"HOME": str(self.home), "RAY_TMPDIR": str(folder / "ray")}
        self._env |= {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
        for made in (self.home, self.shared, folder / "ray"):
            made.mkdir()

    def fill_in(self, workers, head=1):
        """Write a copy of the shipped file that contains the hosts' addresses, the user name and the key."""
        self.head = head
        text = SHIPPED.read_text()
        for place, value in (
            ("head_ip: HEAD ", f"head_ip: {self.hosts.address(head)} "),
            ("[WORKER_1, WORKER_2]", str([self.hosts.address(n) for n in workers])),
            ("ssh_user: YOU ", "ssh_user: root "),
            ("# ssh_private_key: ~/.ssh/id_ed25519", f"ssh_private_key: {self.hosts.key}"),
        ):
            assert text.count(place) == 1
            text = text.replace(place, value)
        self.file.write_text(text)

    def ray(self, *arguments, timeout=600, **environment):
        """Run a Ray command on the user's machine and return the completed process."""
        return subprocess.run(
            ["ray", *map(str, arguments)],
            cwd=ROOT,
            env=self._env | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def succeed(self, *arguments):
        said = self.ray(*arguments)
        assert said.returncode == 0, said.stdout + said.stderr
        return said

    def submit(self, *arguments, start=False):
        return self.ray("submit", *(["--start"] if start else []), self.file, "cluster/search.py", "--", *arguments)

    def start_to_submit(self, *arguments):
        """Start `ray submit` and return the running process, without waiting for its end."""
        return subprocess.Popen(
            ["ray", "submit", str(self.file), "cluster/search.py", "--", *arguments],
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def on(self, number, command, environment="RAY_AUTH_MODE=token"):
        """Run a command on a host in the environment that the cluster file sets up; return the completed process."""
        return self.hosts.ssh(number, f"source ~/.bashrc; cd ~/ticket-search; export {environment}; {command}")

    def wait_for_nodes(self, count):
        """Wait until `count` nodes have joined. `ray up` waits only for the head; workers join within a minute."""
        for _ in range(30):
            found = self.on(self.head, f"python -c {shlex.quote(_COUNT_NODES)}")
            if found.stdout.split()[-1:] == [str(count)]:
                return
            time.sleep(2)
        raise AssertionError(found.stdout + found.stderr)


@contextmanager
def cluster_of(count, listed=None):
    """Start a cluster with Ray on all hosts for the duration of the block.

    Args:
        count: the number of running hosts.
        listed: the number of hosts that the cluster file lists; None means `count`.
    """
    folder = Path("/var/tmp") / f"ticket_search_{os.getpid()}_{time.monotonic_ns()}"
    folder.mkdir()
    try:
        with Hosts(folder / "hosts") as hosts:
            for number in range(1, count + 1):
                hosts.start(number)
            made = Cluster(hosts, folder)
            made.fill_in(range(2, (listed or count) + 1))
            made.succeed("get-auth-token", "--generate")
            made.succeed("up", "--yes", made.file)
            made.wait_for_nodes(count)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)

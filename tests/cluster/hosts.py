"""Simulated hosts on one machine, each with its own network, processes, home, /tmp and sshd.

The hosts are network namespaces connected by a bridge. They need root privileges and the packages iproute2,
openssh-server, rsync and util-linux.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from claims import PATH, claim, give_back, remove, run

TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare")


def missing():
    """Return the reason why this machine cannot run simulated hosts, or "" if it can."""
    if os.geteuid() != 0:
        return "separate hosts need root"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if absent:
        return f"separate hosts need {', '.join(absent)}"
    bridge = f"tsp{os.getpid()}"
    for probe in (
        "unshare --net --mount --pid --uts --ipc --fork true",
        f"ip link add {bridge} type bridge",
        f"ip link del {bridge}",
    ):
        tried = subprocess.run(shlex.split(probe), capture_output=True, text=True, env=os.environ | {"PATH": PATH})
        if tried.returncode:
            return f"separate hosts need `{probe}`: {tried.stderr.strip()}"
    return ""


class Hosts:
    """Simulated hosts on one network, which no other test run on this machine uses.

    Args:
        folder: the folder for the hosts' files, which is removed at the end of the block. It must not be below /tmp or
            /root, because each host mounts its own folders there.
        claims: the folder that records which networks test runs have claimed; None means the default folder.
    """

    def __init__(self, folder, claims=None):
        self.folder = Path(folder)
        self.key = self.folder / "key"
        self._claims = claims
        self._inits = {}

    def __enter__(self):
        self.folder.mkdir(parents=True)
        for name in ("key", "hostkey"):
            run(f"ssh-keygen -q -t ed25519 -N '' -f {self.folder / name}")
        self._claim = claim(self.folder, self._claims)
        return self

    def __exit__(self, *_):
        for number in list(self._inits):
            self.kill(number)
        give_back(self._claim)

    def name(self, number):
        """Return a host's name, which is also the name of its network namespace and of its link to the bridge."""
        return self._claim.host(number)

    def address(self, number):
        """Return the IP address of a host."""
        return str(self._claim.network[10 + number])

    def start(self, number):
        """Start a host, after removing the files of any earlier host with the same number."""
        name, home = self.name(number), self.folder / f"host{number}"
        shutil.rmtree(home, ignore_errors=True)
        for part in ("root", "tmp"):
            (home / part).mkdir(parents=True)
        (home / "tmp").chmod(0o1777)
        # The host can see this Python installation. Put it on the PATH so that Ray's commands on the host use it.
        (home / "root" / ".bashrc").write_text(f"export PATH={Path(sys.prefix) / 'bin'}:$PATH\n")
        config = home / "sshd_config"
        config.write_text(
            f"HostKey {self.folder / 'hostkey'}\nAuthorizedKeysFile {self.key}.pub\nPermitRootLogin prohibit-password\n"
            "PidFile none\nStrictModes no\nUsePAM no\n"
        )
        run(f"ip netns add {name}")
        run(f"ip link add {name} type veth peer name eth0 netns {name}")
        run(f"ip link set {name} master {self._claim.bridge} up")
        run(f"ip -n {name} addr add {self.address(number)}/24 dev eth0")
        run(f"ip -n {name} link set eth0 up")
        run(f"ip -n {name} link set lo up")
        run(f"ip -n {name} route add default via {self._claim.gateway}")
        script = ["mount --make-rprivate /", f"hostname {name}", "mkdir -p /run/sshd", "mount -t proc proc /proc"]
        for hidden in ("root", "tmp"):
            for needed in _needed_below(f"/{hidden}"):
                script.append(f"mkdir -p {home}{needed} && mount --rbind {needed} {home}{needed}")
            script.append(f"mount --rbind {home / hidden} /{hidden}")
        script.append(f"exec {shutil.which('sshd', path=PATH)} -D -e -f {config}")
        with (home / "sshd.log").open("w") as log:
            self._inits[number] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", name),
                    *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"),
                    *("bash", "-ec", "\n".join(script)),
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": PATH},
                start_new_session=True,
            )
        self._wait_for_ssh(number)

    def _wait_for_ssh(self, number):
        for _ in range(100):
            if self.ssh(number, "true").returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError((self.folder / f"host{number}" / "sshd.log").read_text())

    def ssh(self, number, command):
        """Run a command on a host and return the completed process."""
        return subprocess.run(["ssh", *self._ssh(number), command], capture_output=True, text=True, timeout=120)

    def _ssh(self, number):
        return [*self.options, f"root@{self.address(number)}"]

    @property
    def options(self):
        """The ssh options that accept any host key and select the test run's own key."""
        named = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5")
        return [*(word for option in named for word in ("-o", option)), "-i", str(self.key)]

    def tunnel(self, number, port):
        """Forward a free loopback port of this machine to a host's port. Return the ssh process and the free port."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            local = free.getsockname()[1]
        leads = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{local}:127.0.0.1:{port}"]
        return subprocess.Popen(["ssh", *self._ssh(number), *leads]), local

    def cut_off(self, number):
        """Cut a host off from the network, but let it keep running."""
        run(f"ip link set {self.name(number)} down")

    def kill(self, number):
        """Stop a host by killing all its processes at once."""
        init = self._inits.pop(number)
        os.killpg(init.pid, signal.SIGKILL)
        init.wait()
        remove(self.name(number))


def _needed_below(hidden):
    """Return the folders of this installation that a host hides when it mounts its own folder at `hidden`."""
    root = Path(__file__).parents[2]
    wanted = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), root.resolve()}
    return sorted(str(path) for path in wanted if path.is_relative_to(hidden))

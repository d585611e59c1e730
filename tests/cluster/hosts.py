"""Hosts that are really separate, on one machine: each has a network, processes, a home, a /tmp and an sshd of its own.

Network namespaces on a bridge. Needs root, and iproute2, openssh-server, rsync and util-linux.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare")
_BRIDGE, _NETWORK = "tsbr0", "10.213.77"
_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
_ENV = os.environ | {"PATH": _PATH}


def missing():
    """Why there can be no hosts here; "" if there can."""
    if os.geteuid() != 0:
        return "separate hosts need root"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=_PATH)]
    if absent:
        return f"separate hosts need {', '.join(absent)}"
    for probe in (
        "unshare --net --mount --pid --uts --ipc --fork true",
        "ip link add tsprobe type bridge",
        "ip link del tsprobe",
    ):
        tried = subprocess.run(shlex.split(probe), capture_output=True, text=True, env=_ENV)
        if tried.returncode:
            return f"separate hosts need `{probe}`: {tried.stderr.strip()}"
    return ""


def _run(command):
    return subprocess.run(shlex.split(command), check=True, capture_output=True, text=True, env=_ENV)


class Hosts:
    """Some hosts, named ``tshost1``, ``tshost2``, ..., at 10.213.77.11, 10.213.77.12, ...

    Args:
        folder: for their homes; not below /tmp or /root, which each host has of its own.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.key = self.folder / "key"
        self._inits = {}

    def __enter__(self):
        self.folder.mkdir(parents=True)
        for name in ("key", "hostkey"):
            _run(f"ssh-keygen -q -t ed25519 -N '' -f {self.folder / name}")
        self._clear()
        _run(f"ip link add {_BRIDGE} type bridge")
        _run(f"ip addr add {_NETWORK}.254/24 dev {_BRIDGE}")
        _run(f"ip link set {_BRIDGE} up")
        return self

    def __exit__(self, *_):
        for number in list(self._inits):
            self.kill(number)
        _run(f"ip link del {_BRIDGE}")
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _clear():
        """Remove what a test run that was killed has left."""
        for line in _run("ip netns list").stdout.splitlines():
            name = line.split()[0]
            if name.startswith("tshost"):
                for pid in _run(f"ip netns pids {name}").stdout.split():
                    os.kill(int(pid), signal.SIGKILL)
                _run(f"ip netns del {name}")
                subprocess.run(["ip", "link", "del", name], capture_output=True, env=_ENV)
        subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True, env=_ENV)

    @staticmethod
    def address(number):
        """The address of a host."""
        return f"{_NETWORK}.{10 + number}"

    def start(self, number):
        """Switch a host on, as new."""
        name, home = f"tshost{number}", self.folder / f"host{number}"
        shutil.rmtree(home, ignore_errors=True)
        for part in ("root", "tmp"):
            (home / part).mkdir(parents=True)
        (home / "tmp").chmod(0o1777)
        # What Ray runs there finds this very installation; the shared virtual environment is on the path.
        (home / "root" / ".bashrc").write_text(f"export PATH={Path(sys.prefix) / 'bin'}:$PATH\n")
        config = home / "sshd_config"
        config.write_text(
            f"HostKey {self.folder / 'hostkey'}\nAuthorizedKeysFile {self.key}.pub\nPermitRootLogin prohibit-password\n"
            "PidFile none\nStrictModes no\nUsePAM no\n"
        )
        _run(f"ip netns add {name}")
        _run(f"ip link add {name} type veth peer name eth0 netns {name}")
        _run(f"ip link set {name} master {_BRIDGE} up")
        _run(f"ip -n {name} addr add {self.address(number)}/24 dev eth0")
        _run(f"ip -n {name} link set eth0 up")
        _run(f"ip -n {name} link set lo up")
        _run(f"ip -n {name} route add default via {_NETWORK}.254")
        script = ["mount --make-rprivate /", f"hostname {name}", "mkdir -p /run/sshd", "mount -t proc proc /proc"]
        for hidden in ("root", "tmp"):
            for needed in _needed_below(f"/{hidden}"):
                script.append(f"mkdir -p {home}{needed} && mount --rbind {needed} {home}{needed}")
            script.append(f"mount --rbind {home / hidden} /{hidden}")
        script.append(f"exec {shutil.which('sshd', path=_PATH)} -D -e -f {config}")
        with (home / "sshd.log").open("w") as log:
            self._inits[number] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", name),
                    *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"),
                    *("bash", "-ec", "\n".join(script)),
                ],
                stdout=log,
                stderr=log,
                env=_ENV,
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
        """What a command comes to on a host."""
        return subprocess.run(["ssh", *self._ssh(number), command], capture_output=True, text=True, timeout=120)

    def _ssh(self, number):
        return [*self.options, f"root@{self.address(number)}"]

    @property
    def options(self):
        """Of ssh."""
        named = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5")
        return [*(word for option in named for word in ("-o", option)), "-i", str(self.key)]

    def tunnel(self, number, port):
        """A process that leads a port of this machine's loopback to that of a host's."""
        return subprocess.Popen(
            ["ssh", *self._ssh(number), "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{port}:127.0.0.1:{port}"]
        )

    def cut_off(self, number):
        """Take a host's network away; it runs on."""
        _run(f"ip link set tshost{number} down")

    def kill(self, number):
        """Switch a host off: all its processes are gone at once."""
        init = self._inits.pop(number)
        os.killpg(init.pid, signal.SIGKILL)
        init.wait()
        subprocess.run(["ip", "netns", "del", f"tshost{number}"], capture_output=True, env=_ENV)
        subprocess.run(["ip", "link", "del", f"tshost{number}"], capture_output=True, env=_ENV)


def _needed_below(hidden):
    """The folders of this installation that a host would not see, since it has a folder of its own there."""
    root = Path(__file__).parents[2]
    wanted = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), root.resolve()}
    return sorted(str(path) for path in wanted if path.is_relative_to(hidden))

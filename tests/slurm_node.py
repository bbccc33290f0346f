"""A SLURM of one node on loopback: munged, slurmctld and slurmd of our own, in a folder of the test's."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sacctmgr")
WHERE = f"/usr/sbin:/usr/local/sbin:{os.environ.get('PATH', '')}"


def missing() -> str:
    """What keeps a node from starting here; empty = nothing."""
    lacking = [name for name in PROGRAMS[:5] if shutil.which(name, path=WHERE) is None]
    if lacking:
        return f"slurm-wlm is not installed ({', '.join(lacking)})"
    return "" if os.geteuid() == 0 else "slurmd must be started by root"


def _ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _conf(folder: Path, host: str) -> Path:
    controller, daemon = _ports(2)
    path = folder / "slurm.conf"
    path.write_text(f"""ClusterName=klaxon
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={getpass.getuser()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    return path


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch, squeue and srun reach the node. Raises AssertionError, with its logs, when it does not come up."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge" / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    env = {**os.environ, "PATH": WHERE, "SLURM_CONF": str(_conf(folder, host)), "MUNGE_SOCKET": str(folder / "munge.socket")}
    commands = [["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
                 f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge/seed"],
                ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", host]]
    with ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            child = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_stop, child)
            if command[0] == "munged":
                _until(lambda: (folder / "munge.socket").exists(), 30, "munged", folder)
        _until(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True).stdout, 60, "the node", folder)
        yield env


def _until(ready, seconds: float, what: str, folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come up:\n" + "\n".join(f"{path.name}: {path.read_text(errors='replace')[-800:]}"
                                                                        for path in sorted(folder.glob("*.log")) + sorted(folder.glob("*.out"))))
        time.sleep(0.3)


def _stop(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()

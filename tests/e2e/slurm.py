"""A real Slurm of one node for tests: munged, slurmctld and slurmd, with all their state in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "munge", "slurmctld", "slurmd", "srun", "scontrol", "sinfo")


def missing() -> str:
    """Why Slurm cannot be run here, or ""."""
    where = f"{os.environ.get('PATH', '')}:/usr/sbin"
    absent = [name for name in NEEDED if shutil.which(name, path=where) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "starting Slurm's daemons takes root"


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of this host; yields the environment in which `srun` reaches it."""
    host, ports = socket.gethostname().partition(".")[0], [_free_port() for _ in range(2)]
    config = folder / "slurm.conf"
    for name in ("ctld", "d"):
        (folder / name).mkdir()
    config.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environ = {**os.environ, "SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    daemons = [
        [
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        ],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config), "-N", host],
    ]  # fmt: skip
    running = []
    try:
        for daemon in daemons:
            running.append(subprocess.Popen(daemon, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(0.5)
        _until_idle(environ, folder)
        yield environ
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


def _until_idle(environ: dict[str, str], folder: Path) -> None:
    end_s = time.monotonic() + 60
    while True:
        told = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environ, capture_output=True, text=True, check=False)
        if told.stdout.strip() == "idle":
            return
        if time.monotonic() > end_s:
            logs = "\n".join(path.read_text()[-1500:] for path in folder.glob("*.log"))
            raise TimeoutError(f"Slurm did not come up: {told.stdout}{told.stderr}\n{logs}")
        time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

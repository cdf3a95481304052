"""A SLURM of this session alone, one node with two cores, in a folder of its own, where its programs are installed."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import engines
import pytest

__all__ = ["cluster"]

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])

# Accounting is off, jobs are not requeued unless they ask for it, and those of the partition `urgent` preempt others.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=1
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
KillWait=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
PartitionName=closed Nodes=ALL State=DOWN
"""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach a fresh cluster in `folder`; skips where there is none to start.

    Its partitions: normal; urgent, whose jobs preempt those of normal; closed, whose jobs wait for ever.
    """
    programs = {name: shutil.which(name, path=_PATH) for name in _PROGRAMS}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        engines.absent("SLURM", f"no {', '.join(missing)}")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf, key = folder / "slurm.conf", folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    conf.write_text(_CONF.format(host=host, user=user, folder=folder, ports=_free_ports(2)))
    environment = {"SLURM_CONF": str(conf)}
    daemons: list[subprocess.Popen] = []

    def call(name, *arguments):
        command = [programs[name], *arguments]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    def start(name, *arguments, ready):
        with (folder / f"{name}.out").open("wb") as output:
            command = [programs[name], *arguments]
            daemons.append(
                subprocess.Popen(command, env=os.environ | environment, cwd=folder, stdout=output, stderr=output)
            )
        deadline = time.monotonic() + 60
        while not ready():
            if daemons[-1].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{name} does not start:\n{(folder / f'{name}.out').read_text()}")
            time.sleep(0.1)

    files = ("socket", "key-file", "seed-file", "pid-file", "log-file")
    munge = [f"--{name}={folder / 'munge'}.{name.partition('-')[0]}" for name in files]
    try:
        start("munged", "--foreground", "--force", *munge, ready=(folder / "munge.socket").exists)
        start("slurmctld", "-D", ready=lambda: call("squeue").returncode == 0)
        start("slurmd", "-D", ready=lambda: "State=IDLE" in call("scontrol", "show", "node").stdout)
        yield environment
    finally:
        call("scancel", f"--user={user}")
        deadline = time.monotonic() + 60
        while call("squeue", "--noheader").stdout and time.monotonic() < deadline:
            time.sleep(0.1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports

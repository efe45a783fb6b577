"""A SLURM cluster of two nodes on this machine, for tests: each node has one GPU, which is /dev/null."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/sbin"  # where daemons are, which not every user's PATH names
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmUser={user}
SlurmdUser={user}
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5  # so that a job that is queued again waits for seconds only
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides  # more CPUs than this machine may have
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine does not have."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """A context: the daemons run while it is entered. ``environment`` is what SLURM's commands need."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH}
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        user = pwd.getpwuid(os.getuid()).pw_name
        text = CONFIGURATION.format(host=socket.gethostname(), ports=free_ports(3), folder=self.folder, user=user)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        try:
            files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            self.start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
            self.wait(lambda: (self.folder / "munge.socket").exists())
            self.start("slurmctld", "-D", "-c")
            for node in NODES:
                self.start("slurmd", "-D", "-N", node)
            self.wait(lambda: self.ask("sinfo", "--noheader", "--format=%t %D") == "idle 2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        """Cancel all jobs, stop the daemons, delete their files."""
        try:
            if len(self.daemons) > 1:
                self.ask("scancel", f"--user={os.getuid()}")
                self.wait(lambda: not self.ask("squeue", "--noheader"), 60)
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
            for daemon in self.daemons:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(20)
                daemon.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}{command[-1]}.log".replace("/", ""), "wb") as log:
            self.daemons.append(subprocess.Popen(command, env=os.environ | self.environment, stdout=log, stderr=log))

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return done.stdout.strip()

    def wait(self, condition, limit: float = 30) -> None:
        """Until the condition holds. RuntimeError if a daemon ends or the time is over."""
        end = time.monotonic() + limit
        while not condition():
            ended = [daemon.args[0] for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"{'ended: ' + ended[0] if ended else f'not within {limit} s'}\n{logs}")
            time.sleep(0.1)

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says about a job or a task of an array."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

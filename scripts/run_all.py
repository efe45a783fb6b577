"""Runs the command lines of its standard input, one at a time or, with --gpus, one at a time on each GPU.

Runs that need a teacher wait for all that do not, and are not started where the teacher's failed. A run that fails does
not stop the others, unless nothing but failures came before: then three (on each GPU) are enough. SIGINT, SIGTERM and
SIGHUP (but under nohup) are passed on as SIGTERM: the trainings save their step, and --resume auto continues.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque


class Queue:
    """Commands for as many workers as there are GPUs, and what became of them."""

    def __init__(self, commands: list[list[str]], gpus: list[str]):
        self.total, self.gpus = len(commands), gpus
        self.waiting: deque[list[str]] = deque()
        self.running: set[subprocess.Popen] = set()
        self.failed: list[list[str]] = []
        self.started, self.succeeded, self.stopped_by = 0, 0, 0
        self.change = threading.RLock()  # a signal's handler may come while the main thread holds it

    def run(self, commands: list[list[str]]) -> None:
        """All of them; returns when the last has ended."""
        self.waiting.extend(commands)
        workers = [threading.Thread(target=self.work, args=(gpu,)) for gpu in self.gpus or [None]]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # so that the main thread can take signals

    def work(self, gpu: str | None) -> None:
        """Run what is waiting, one after another."""
        while process := self.start_next(gpu):
            if isinstance(process, str):  # why it could not be started
                continue
            _, said = process.communicate()
            with self.change:
                self.running.discard(process)
                if process.returncode == 0:
                    self.succeeded += 1
                elif not self.stopped_by:
                    self.failed.append(process.args)
                    print(f"failed with exit code {process.returncode}: {shlex.join(process.args)}\n{said or ''}",
                          file=sys.stderr, flush=True)

    def is_hopeless(self) -> bool:
        """Whether the others would fail, too: no data, no disk."""
        return not self.succeeded and len(self.failed) >= 3 * max(1, len(self.gpus))

    def start_next(self, gpu: str | None) -> subprocess.Popen | str | None:
        """-> the next command's process, a word where it cannot be started; None where there is no other, or no use."""
        with self.change:
            if not self.waiting or self.stopped_by or self.is_hopeless():
                return None
            command = [*self.waiting.popleft(), *(["--gpu_id", gpu] if gpu else [])]
            self.started += 1
            several = len(self.gpus) > 1  # then their lines would be mixed; each has its train.log
            try:
                if any(flag(command, "--T_model_path") == folder_of(other) for other in self.failed):
                    raise OSError("its teacher's run has failed")
                print(f"[{self.started}/{self.total}] {shlex.join(command)}", flush=True)
                process = subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, start_new_session=True,
                                           stdout=subprocess.DEVNULL if several else None,
                                           stderr=subprocess.PIPE if several else None)
            except OSError as error:
                self.failed.append(command)
                print(f"not started ({error}): {shlex.join(command)}", file=sys.stderr, flush=True)
                return "not started"
            self.running.add(process)
            return process

    def stop(self, number: int, frame: object) -> None:
        """A signal's handler: nothing starts any more, and what runs is told."""
        with self.change:
            self.stopped_by = number
            for process in self.running:
                process.send_signal(signal.SIGTERM)


def flag(command: list[str], name: str) -> str | None:
    """The value of a flag."""
    return command[command.index(name) + 1] if name in command[:-1] else None


def folder_of(command: list[str]) -> str:
    """Where train.py makes the run of a command line."""
    place = "/".join(flag(command, name) or "" for name in ("--save_dir", "--dataset", "--model"))
    return f"{place}_{flag(command, '--version')}"


def main() -> None:
    """Exit code 0 where all runs are complete, 1 where some failed, 128 + the signal after one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", nargs="+", default=[], help="which GPUs")
    gpus = parser.parse_args().gpus
    commands = [shlex.split(line) for line in sys.stdin if line.strip()]
    for command in commands:
        command[0] = os.environ.get("PYTHON") or sys.executable
    queue = Queue(commands, gpus)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's SIGHUP
            signal.signal(number, queue.stop)
    for taught in (False, True):
        queue.run([command for command in commands if ("--T_model_path" in command) is taught])
    if queue.stopped_by:
        print("stopped: start the script again, and it goes on here", file=sys.stderr)
        sys.exit(128 + queue.stopped_by)
    if queue.is_hopeless() and len(queue.failed) < queue.total:
        print(f"the first {len(queue.failed)} runs failed, so the others were not tried", file=sys.stderr)
    else:
        print(f"{queue.succeeded} of {queue.total} runs are complete")
    if queue.failed:
        what = "1 run" if len(queue.failed) == 1 else f"{len(queue.failed)} runs"
        sys.exit(f"{what} failed; what is mended runs when the script is started again")


if __name__ == "__main__":
    main()

"""Run the command lines of standard input: one at a time, or with --gpus as many on each GPU as its number is named.

--gpus 0 1: one run at a time on each. --gpus 0 0 1 1: two at a time on each, because one small network does not fill a
GPU (docs/hardware.md).

Finished runs are passed over. Runs with a teacher start after all other runs have ended. A run does not start if its
teacher's run has failed. If a run fails, the others go on. Only if the first three runs (with --gpus: three for each
number) have all failed, no more start.

SIGINT, SIGTERM and SIGHUP (not under nohup) reach the trainings as SIGTERM. They save their step, and --resume auto
continues there.
"""

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.errors import Complete  # noqa: E402
from training.folder import finished_records  # noqa: E402


class Queue:
    """Commands and their results. Each number in gpus has one worker; without GPUs there is one worker."""

    def __init__(self, commands: list[list[str]], gpus: list[str]):
        self.total, self.gpus = len(commands), gpus
        self.waiting: deque[list[str]] = deque()
        self.running: set[subprocess.Popen] = set()
        self.failed: list[list[str]] = []
        self.started, self.succeeded, self.stopped_by = 0, 0, 0
        self.change = threading.RLock()  # reentrant: a signal may come while the main thread holds it

    def run(self, commands: list[list[str]]) -> None:
        """Run these commands; return when the last one has ended."""
        self.waiting.extend(commands)
        workers = [threading.Thread(target=self.work, args=(gpu,)) for gpu in self.gpus or [None]]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # so that the main thread can take signals

    def work(self, gpu: str | None) -> None:
        """Run waiting commands, one after another."""
        while process := self.start_next(gpu):
            _, errors = process.communicate()
            with self.change:
                self.running.discard(process)
                if process.returncode == 0:
                    self.succeeded += 1
                elif not self.stopped_by:
                    self.failed.append(process.args)
                    print(f"failed with exit code {process.returncode}: {shlex.join(process.args)}\n{errors or ''}",
                          file=sys.stderr, flush=True)

    def is_hopeless(self) -> bool:
        """Whether all other runs would fail, too: many have failed and none has succeeded (no data, no disk)."""
        return not self.succeeded and len(self.failed) >= 3 * max(1, len(self.gpus))

    def start_next(self, gpu: str | None) -> subprocess.Popen | None:
        """The process of the next command that can start. None after the last, after a signal, or if all would fail."""
        with self.change:
            while self.waiting and not self.stopped_by and not self.is_hopeless():
                command = [*self.waiting.popleft(), *(["--gpu_id", gpu] if gpu else [])]
                self.started += 1
                if message := complete(command[1:]):
                    print(f"[{self.started}/{self.total}] {message}", flush=True)
                    self.succeeded += 1
                    continue
                try:
                    process = self.start(command)
                except OSError as error:
                    self.failed.append(command)
                    print(f"not started ({error}): {shlex.join(command)}", file=sys.stderr, flush=True)
                else:
                    self.running.add(process)
                    return process

    def start(self, command: list[str]) -> subprocess.Popen:
        """Start a command. OSError if that is impossible, or if the run of its teacher has failed."""
        teacher = flag(command, "--T_model_path")
        if teacher and teacher in map(folder_of, self.failed):
            raise OSError("its teacher's run has failed")
        print(f"[{self.started}/{self.total}] {shlex.join(command)}", flush=True)
        several = len(self.gpus) > 1  # their output would be mixed; each run writes its own train.log
        return subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, start_new_session=True,
                                stdout=subprocess.DEVNULL if several else None,
                                stderr=subprocess.PIPE if several else None)

    def stop(self, number: int, frame: object) -> None:
        """Handle a signal: start nothing more, and send SIGTERM to all running trainings."""
        with self.change:
            self.stopped_by = number
            for process in self.running:
                process.send_signal(signal.SIGTERM)


def flag(command: list[str], name: str) -> str | None:
    """The value of a flag; None if the command does not have it."""
    return command[command.index(name) + 1] if name in command[:-1] else None


def folder_of(command: list[str]) -> str | None:
    """The run folder of a train.py command, which a teacher is. None for other scripts."""
    if command[1:2] != ["train.py"]:
        return None
    place = "/".join(flag(command, name) or "" for name in ("--save_dir", "--dataset", "--model"))
    return f"{place}_{flag(command, '--version')}"


def complete(command: list[str]) -> str | None:
    """What --resume auto says if this command line (script and flags) has made a finished run, else None.

    It is quicker than asking the script. The run must have been made by the same words, but for --gpu_id at the end.
    """
    if flag(command, "--resume") != "auto" or "--overwrite" in command:
        return None
    names = command[command.index("--models") + 1:] if "--models" in command else [flag(command, "--model") or ""]
    model = "+".join(itertools.takewhile(lambda word: not word.startswith("--"), names))
    place, name = Path(flag(command, "--save_dir") or "", flag(command, "--dataset") or ""), flag(command, "--version")
    for folder in (place / f"{model}_{name}", *(path / f"{model}_{name}" for path in sorted(place.glob("*")))):
        recorded, words = finished_records(folder)
        if words and without_gpu(words) == without_gpu(command):
            return str(Complete(folder, recorded["num_epochs"]))
    return None


def without_gpu(command: list[str]) -> list[str]:
    """The words without --gpu_id at their end."""
    return command[:-2] if "--gpu_id" in command[-2:-1] else command


def print_left(lines: list[str]) -> None:
    """Print the lines of unfinished runs: teachers, then others, then students, with this word in front of each line.

    A teacher is a run that a student in these lines needs.
    """
    left = {line: command for line in lines if not complete((command := shlex.split(line))[1:])}
    needed = {flag(command, "--T_model_path") for command in left.values()} - {None}
    kinds: dict[str, list[str]] = {"teacher": [], "other": [], "student": []}
    for line, command in left.items():
        student = "--T_model_path" in command
        kinds["student" if student else "teacher" if folder_of(command) in needed else "other"].append(line)
    for kind, members in kinds.items():
        for line in members:
            print(kind, line)


def main() -> None:
    """Exit code: 0 if all runs are complete, 1 if some failed, 128 + the signal's number after a signal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])  # -OO: None
    parser.add_argument("--gpus", nargs="+", default=[], help="numbers of GPUs; one may be named several times")
    parser.add_argument("--left", action="store_true", help="print the unfinished command lines; run nothing")
    args = parser.parse_args()
    gpus, lines = args.gpus, [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if args.left:
        print_left(lines)
        return
    commands = [shlex.split(line) for line in lines]
    for command in commands:
        command[0] = os.environ.get("PYTHON") or sys.executable
    queue = Queue(commands, gpus)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's SIGHUP
            signal.signal(number, queue.stop)
    for with_teacher in (False, True):
        queue.run([command for command in commands if ("--T_model_path" in command) is with_teacher])
    if queue.stopped_by:
        print("stopped: start the script again to continue", file=sys.stderr)
        sys.exit(128 + queue.stopped_by)
    if queue.is_hopeless() and len(queue.failed) < queue.total:
        print(f"the first {len(queue.failed)} runs failed, so the others were not started", file=sys.stderr)
    else:
        print(f"{queue.succeeded} of {queue.total} runs are complete")
    if queue.failed:
        runs = "1 run" if len(queue.failed) == 1 else f"{len(queue.failed)} runs"
        sys.exit(f"{runs} failed: fix the cause, then start the script again")


if __name__ == "__main__":
    main()

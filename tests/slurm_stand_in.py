"""Stand-in of SLURM: sbatch, srun, squeue, scancel and scontrol on one machine, for tests.

`python slurm_stand_in.py COMMAND …`; `install` puts the commands on a PATH. Jobs are processes, each with a process
that runs and signals it as slurmctld does. Files in the folder SLURM_STAND_IN hold the state:

    counter             the last job's number
    12_0.task           a task: number, index, name, script, cwd, limits, state, starts
    12_0.order          what to do with it: cancel, requeue, preempt with seconds of grace, fail as its node does, or
                        limit, as if its time limit was near
    hold                while it exists, no task starts
    down                while it exists, squeue does not reach the controller
    kill_submitter      while it exists, sbatch kills the process that has called it, after submitting

Time limits are reached by order only. A "minute" between a signal and the end lasts SLURM_STAND_IN_MINUTE seconds, or
60.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
PARTITIONS = ("debug", "gpu")
KILL_WAIT = 5.0  # seconds between SIGTERM and SIGKILL; SLURM's default is 30
ACTIVE = ("PENDING", "RUNNING", "COMPLETING")


def install(folder: Path) -> Path:
    """Write the commands into folder/bin, and return it; the state is in the folder."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in COMMANDS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {Path(__file__).absolute()} {name} "$@"\n')
        program.chmod(0o755)
    return programs


def tasks(folder: Path) -> list[dict]:
    """All tasks, in the order in which they were submitted."""
    return sorted((read(path) for path in folder.glob("*.task")), key=lambda task: (task["number"], task["index"] or 0))


def order(folder: Path, task: str, words: str) -> None:
    """Tell the process of a task what to do with it, such as "preempt 0" for the task "12_0"."""
    (folder / f"{task}.order").write_text(words)


def task_name(number: int, index: int | None) -> str:
    """Name a task as squeue does: the job's number, and its index if it is one of an array."""
    return str(number) if index is None else f"{number}_{index}"


def end_all(folder: Path) -> None:
    """End all tasks and their processes."""
    for path in folder.glob("*.task"):
        with suppress(ProcessLookupError):
            os.kill(read(path)["controller"], signal.SIGKILL)
        send(path.stem, signal.SIGKILL)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def write(path: Path, content: dict) -> None:
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").replace(path)


def processes(task: str) -> list[int]:
    """Processes of a task, found by their environment, as SLURM finds those of a cgroup."""
    mark, found = f"\0SLURM_STAND_IN_TASK={task}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in b"\0" + path.read_bytes():
                found.append(int(path.parent.name))
    return found


def send(task: str, signum: int, but: int = 0) -> None:
    for process in processes(task):
        with suppress(ProcessLookupError):
            if process != but:
                os.kill(process, signum)


def sbatch(folder: Path, arguments: list[str]) -> None:
    script = Path(arguments[-1])
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))
    options = {key: "".join(shlex.split(value)) for key, value in options.items()}
    if (partition := options.get("partition", "gpu")) not in PARTITIONS:
        print(f"sbatch: error: invalid partition specified: {partition}", file=sys.stderr)
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
    counter = folder / "counter"
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(number))
    copy = folder / f"{number}.sh"  # SLURM keeps the script
    copy.write_text(script.read_text())
    last = re.match(r"0-(\d+)", options.get("array", ""))
    for index in range(int(last[1]) + 1) if last else [None]:
        task = {"number": number, "index": index, "name": options["job-name"], "script": str(copy), "cwd": os.getcwd()}
        task |= {"signal": options["signal"], "state": "PENDING", "starts": 0}
        task |= {"requeue": "requeue" in options, "options": options}
        path = folder / f"{task_name(number, index)}.task"
        words = [sys.executable, "-SE", __file__, "control", path.stem]
        quiet = subprocess.DEVNULL
        controller = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        write(path, task | {"controller": controller.pid})
    if (folder / "kill_submitter").exists():
        os.kill(os.getppid(), signal.SIGKILL)
    print(f"Submitted batch job {number}")


def control(folder: Path, arguments: list[str]) -> None:
    """Run a task until it ends and is not queued again."""
    (name,) = arguments
    path, orders = folder / f"{name}.task", folder / f"{name}.order"
    while not path.exists():
        time.sleep(0.01)
    again = True
    while again:
        task = read(path)
        write(path, task | {"state": "PENDING"})
        while (folder / "hold").exists():
            if orders.exists():  # only to cancel
                write(path, task | {"state": "CANCELLED"})
                return
            time.sleep(0.02)
        write(path, task | {"state": "RUNNING", "starts": task["starts"] + 1})
        state, again = run_once(name, task, orders)
        write(path, read(path) | {"state": state})


def run_once(name: str, task: dict, orders: Path) -> tuple[str, bool]:
    """Run a task once; return its state and whether it is queued again."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_JOB")}
    environment |= {"SLURM_STAND_IN_TASK": name, "SLURM_JOB_ID": str(task["number"]), "SLURM_JOB_NODELIST": "node1"}
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_NODEID": "0"}
    if task["index"] is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": str(task["number"]), "SLURM_ARRAY_TASK_ID": str(task["index"])}
    signame, _, seconds = task["signal"].partition("@")
    minute = float(os.environ.get("SLURM_STAND_IN_MINUTE", "60"))
    delay, preempted, end, warn = float(seconds) / 60 * minute, False, float("inf"), float("inf")
    batch = subprocess.Popen(["bash", task["script"]], cwd=task["cwd"], env=environment, start_new_session=True)
    while batch.poll() is None:
        time.sleep(0.02)
        word, grace = next_order(orders)
        now = time.monotonic()
        if word == "preempt" and grace:
            send(name, signal.SIGTERM, but=batch.pid)
            end, preempted = now + grace, True
            warn = end - delay
        elif word == "limit":
            end, warn = now + delay, now
        elif word == "fail":
            send(name, signal.SIGKILL)
            return "NODE_FAIL", task["requeue"]
        elif word or now > end:
            terminate(name)
            if word == "requeue":
                return "REQUEUED", True
            return (
                ("PREEMPTED", task["requeue"])
                if preempted or word == "preempt"
                else ("CANCELLED" if word else "TIMEOUT", False)
            )
        elif now > warn:
            send(name, getattr(signal, f"SIG{signame}"), but=batch.pid)
            warn = float("inf")
    send(name, signal.SIGKILL)  # a job ends with its script
    if next_order(orders)[0] == "requeue":
        return "REQUEUED", True
    return ("FAILED" if batch.returncode else "COMPLETED"), False


def next_order(orders: Path) -> tuple[str, float]:
    """Take what a task has been told, and the seconds of grace; empty without any."""
    if not orders.exists():
        return "", 0.0
    word, *grace = orders.read_text().split()
    orders.unlink()
    return word, float(*grace[:1] or [0])


def terminate(name: str) -> None:
    """Send SIGTERM to all processes of a task, and SIGKILL to those that remain."""
    send(name, signal.SIGTERM)
    deadline = time.monotonic() + KILL_WAIT
    while processes(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    send(name, signal.SIGKILL)


def srun(folder: Path, arguments: list[str]) -> None:
    """Become the command, as the only task of a job, with its output in the files of --output and --error."""
    number, index = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
    for descriptor, option in ((1, "--output"), (2, "--error")):
        path = arguments[arguments.index(option) + 1]
        for letter, value in {"j": number, "A": number, "a": index, "t": "0"}.items():
            path = path.replace(f"%{letter}", value)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    while arguments[0].startswith("-"):
        del arguments[: 2 if arguments[0] in ("--output", "--error") else 1]
    os.execvp(arguments[0], arguments)


def squeue(folder: Path, arguments: list[str]) -> None:
    """Print "JOB NAME" of active tasks with the names of --name."""
    if (folder / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    (names,) = [argument.removeprefix("--name=") for argument in arguments if argument.startswith("--name=")]
    for task in tasks(folder):
        if task["state"] in ACTIVE and task["name"] in names.split(","):
            print(task_name(task["number"], task["index"]), task["name"])


def scancel(folder: Path, arguments: list[str]) -> None:
    order(folder, arguments[0], "cancel")


def scontrol(folder: Path, arguments: list[str]) -> None:
    command, task = arguments
    assert command == "requeue"
    order(folder, task, "requeue")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["SLURM_STAND_IN"]), sys.argv[2:])

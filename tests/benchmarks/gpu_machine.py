"""Carry the project to a machine that has a GPU, torch and numpy, and no network; test, measure and train there.

  python tests/benchmarks/gpu_machine.py pack FOLDER       here, with pip and the images of SR_DATA_ROOT
  python tests/benchmarks/gpu_machine.py run FOLDER OUT    there, in a checkout

`pack` fills FOLDER with the wheels that the machine lacks, and with T91, BSDS500 (train) and Set5: 44 MiB with the
checkout. `run` installs the wheels into FOLDER/venv. Then it runs the tests of tests/gpu, bench_gpu.py and a training
(FOLDER/run), which is validated on Set5, and scores its last checkpoint. Each part has a limit, and none needs another
to succeed. OUT receives, as the results come, summary.md, the output of each part, and run-N, from which the training
can go on: with that folder in FOLDER, or with FOLDER/run still there, the same command goes on with it.

Only the standard library is imported here.
"""

import argparse
import contextlib
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64 * 2**20  # bytes of FOLDER and the checkout
PIECE = 15 * 2**20  # bytes of a file of run-N: larger ones may not come back from the machine
IMAGES = ("T91", "BSDS500/train", "benchmark/Set5")  # with BSDS500/test, no training would fit in beside them
ON_MACHINE = {"torch": "2.11.0", "numpy": "2.2.0"}
UNUSED = {"matplotlib"}  # is for figures
SOURCES = ["antlr4-python3-runtime==4.9.*"]  # Hydra's: pure Python, published without a wheel
GLIBC = ("1", "2010", "2014", *(f"_2_{minor}" for minor in (17, 24, 26, 27, 28)))
MINUTES = (2.5, 3.5, 2.5)  # with installation and scores below the ten of a call
SCORING = 1  # minutes
COPY_EVERY, GRACE = 45, 30  # seconds between copies of the training; from SIGTERM to SIGKILL
TAIL = 24  # lines of each part's output in summary.md
TRAINING = [
    *("data=t91_bsds", "data.train.hr=[${data_root}/T91,${data_root}/BSDS500/train]", "data.patch_size=48"),
    *("graph=true", "max_steps=100000", "val_every=2000", "save_every=1000"),
    *("benchmarks=[]", "num_comparisons=0", "~data.val.names", "data.val._target_=sr_lightning.data.image_folder"),
    *("+data.val.hr=${data_root}/benchmark/Set5/HR", "+data.val.lr=${data_root}/benchmark/Set5/LR_bicubic"),
    "+data.val.scale=${scale}",
]


def pack(folder: Path, python: str) -> None:
    """Fill a new folder with wheels and images; leave none behind if that fails."""
    root = Path(os.environ.get("SR_DATA_ROOT", ROOT / "data"))
    if missing := [name for name in IMAGES if not (root / name).is_dir()]:
        way_out = "set SR_DATA_ROOT, or run python -m sr_lightning.data fetch t91 bsds500 set5"
        sys.exit(f"{root} lacks {', '.join(missing)}: {way_out}")
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing_", dir=folder.parent) as temporary:
        draft = Path(temporary, "draft")
        download(draft / "wheels", python)
        for name in IMAGES:
            shutil.copytree(root / name, draft / "data" / name, copy_function=shutil.copyfile)
        names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        sizes = {
            "wheels": size(draft.glob("wheels/*")),
            "images": size(draft.glob("data/**/*")),
            "checkout": size(ROOT / name for name in names.split("\0") if name),
        }
        print(", ".join(f"{name} {mebibytes(count)}" for name, count in sizes.items()))
        if (total := sum(sizes.values())) > LIMIT:
            sys.exit(f"{mebibytes(total)} are more than {mebibytes(LIMIT)}: nothing is packed")
        draft.rename(folder)
    print(f"{folder}: {mebibytes(total)} with the checkout, of {mebibytes(LIMIT)}")


def size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def requirements() -> list[str]:
    """List what pyproject.toml requires for training and its tests, without what the machine has or no part uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["train"], *(one for one in extras["dev"] if one.startswith("pytest"))]
    return [one for one in wanted if re.match(r"[\w-]+", one)[0] not in {*ON_MACHINE, *UNUSED}]


def download(wheels: Path, python: str) -> None:
    """Download the wheels of `requirements()` and of all that they require, for a Python version on x86-64."""
    with tempfile.TemporaryDirectory() as found:
        stubs = [write_stub(Path(found), name, version) for name, version in ON_MACHINE.items()]
        pip("wheel", "--no-deps", f"--wheel-dir={found}", *SOURCES)
        platforms = [f"--platform=manylinux{glibc}_x86_64" for glibc in GLIBC]
        target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
        pip("download", *target, f"--find-links={found}", f"--dest={wheels}", *requirements(), *stubs)
    for stub in wheels.glob("*+machine-*"):
        stub.unlink()


def write_stub(folder: Path, name: str, version: str) -> str:
    """Write a wheel without content or requirements, so that pip finds a package of the machine; return its name."""
    version += "+machine"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}=={version}"


def pip(*words: str) -> None:
    if subprocess.run([sys.executable, "-m", "pip", *words, "-q"]).returncode:
        sys.exit(f"pip {words[0]} has failed")


def run(folder: Path, out: Path, minutes: Sequence[float], settings: Sequence[str]) -> None:
    """Install, then run each part of more than 0 minutes, and summarise what is done so far after each."""
    if not (folder / "wheels").is_dir():
        sys.exit(f"{folder} is not a folder that `pack` has filled")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out.mkdir(parents=True, exist_ok=True)
    python = install(folder)
    training = folder / "run"
    os.environ |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    os.environ |= {"SR_DATA_ROOT": str(folder / "data"), "SR_CACHE_DIR": str(folder / "cache")}
    scored = [f"ckpt={training}/checkpoints/last.ckpt", "num_comparisons=0", "report_images=0"]
    parts = {
        "tests": ["-m", "pytest", "tests/gpu", "-vv", "-n", "auto", "--maxprocesses", "4", "--dist", "load"],
        "benchmark": ["-m", "tests.benchmarks.bench_gpu", "--through-train"],
        "training": ["train.py", *TRAINING, *settings, place(training)],
        "scores": ["evaluate.py", *scored, f"hydra.run.dir={folder}/scores"],
    }
    limits = dict(zip(parts, (*minutes, SCORING if minutes[2] else 0), strict=True))
    table, details = ["| part | outcome | seconds |", "|---|---|---|"], []
    for name in (name for name in parts if limits[name]):
        begin, log = time.monotonic(), out / f"{name}.txt"
        meanwhile = partial(copy_run, training, out) if name == "training" else None
        outcome = limited([str(python), *parts[name]], log, limits[name] * 60, meanwhile)
        table.append(f"| {name} | {outcome} | {time.monotonic() - begin:.0f} |")
        details += [f"\n{name}:\n\n```", *log.read_text(errors="replace").splitlines()[-TAIL:], "```"]
        if name == "training":
            details += curve(training / "metrics.csv")
        write(out / "summary.md", "\n".join([*table, *details, ""]))
    print((out / "summary.md").read_text())


def install(folder: Path) -> Path:
    """Make FOLDER/venv with the wheels and all that this Python has; return its Python.

    This Python may be that of an environment, whose packages `--system-site-packages` would not show.
    """
    venv.create(folder / "venv", symlinks=True)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    paths = [path for path in sys.path if path.endswith("-packages")]
    (site / "machine.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in paths))
    python = folder / "venv" / "bin" / "python"
    pip(f"--python={python}", "install", "--no-index", "--no-deps", *map(str, folder.glob("wheels/*.whl")))
    return python


def place(training: Path) -> str:
    """Return the setting that begins the training, or goes on with it, from the copy in FOLDER if there is one."""
    last = Path("checkpoints", "last.ckpt")
    copies = sorted(training.parent.glob("run-*"))
    if not (training / last).is_file():
        shutil.rmtree(training, ignore_errors=True)  # stopped before its first checkpoint
        if not copies:
            return f"hydra.run.dir={training}"
        draft = training.with_name("draft")
        content = b"".join(piece.read_bytes() for piece in sorted(copies[-1].iterdir()))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(draft)
        shutil.copyfile(draft / last, draft / last.with_name("best.ckpt"))  # until there is a better one
        draft.rename(training)
    return f"resume={training}"


def copy_run(training: Path, out: Path) -> None:
    """Copy what a run, which may be at work, goes on from into OUT: run-N, which replaces run-(N - 1) once complete.

    It is an archive in pieces. Its checkpoint is read first, so that nothing in it is older, as after a kill.
    """
    last = training / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return
    content, others = io.BytesIO(), (training / name for name in ("config.yaml", "metrics.csv", "provenance.json"))
    with zipfile.ZipFile(content, "w") as archive:
        for path in (last, *(path for path in others if path.is_file())):
            archive.writestr(str(path.relative_to(training)), path.read_bytes())
    earlier, whole, draft = sorted(out.glob("run-*")), content.getvalue(), out / "draft"
    shutil.rmtree(draft, ignore_errors=True)  # of a killed command
    draft.mkdir()
    for number, start in enumerate(range(0, len(whole), PIECE)):
        (draft / f"piece-{number:02}").write_bytes(whole[start : start + PIECE])
    draft.rename(out / f"run-{int(earlier[-1].name[4:]) + 1 if earlier else 1:04}")
    for folder in earlier:
        shutil.rmtree(folder)


def limited(words: Sequence[str], log: Path, seconds: float, meanwhile: Callable[[], None] | None = None) -> str:
    """Run a command for some seconds at most, in the checkout; return its outcome.

    Its output is written as it comes. At its limit, or when this process is told to end, it receives SIGTERM, at which
    a training saves, and is killed after GRACE seconds. `meanwhile` is called every COPY_EVERY seconds and at the end.
    """
    end = time.monotonic() + seconds
    with log.open("wb") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, process_group=0)
    try:
        while process.poll() is None and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(left, COPY_EVERY))
            if meanwhile:
                meanwhile()
        outcome = "ended by its limit" if process.poll() is None else f"exit code {process.returncode}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if meanwhile:
            meanwhile()
    return outcome


def curve(metrics: Path) -> list[str]:
    """Return a table of the PSNR on Set5 over the minutes of training, with about 20 rows."""
    rows = []
    if metrics.is_file():
        with metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("val/psnr")]
    rows = rows[:: -(-len(rows) // 20) or 1] + rows[-1:]
    lines = [f"| {float(row['seconds']) / 60:.1f} | {row['step']} | {float(row['val/psnr']):.2f} |" for row in rows]
    return ["\nPSNR on Set5:\n\n| minutes | steps | dB |\n|---|---|---|", *dict.fromkeys(lines)]


def write(path: Path, text: str) -> None:
    """Write a file so that it is the earlier one or the new one at any time."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="fill FOLDER; it must not exist")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", help="version on the machine (%(default)s)")
    running = commands.add_parser("run", help="test, measure, train and score")
    running.add_argument("folder", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument(
        *("--minutes", "-m"), type=float, nargs=3, metavar=("TESTS", "BENCHMARK", "TRAINING"), default=MINUTES
    )
    running.add_argument(
        *("--train", "-t"),
        nargs="+",
        metavar="SETTING",
        default=["experiment=edsr_baseline_paper"],
        help="settings of train.py; others: experiment=wdsr_a_paper, experiment=srresnet_paper data.patch_size=24",
    )
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.folder, options.python)
    else:
        run(options.folder.resolve(), options.out.resolve(), options.minutes, options.train)


if __name__ == "__main__":
    main()

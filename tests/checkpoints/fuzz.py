"""Fuzzer of what reads checkpoints, weights and config.yaml: a mutant is refused by an InputError, or read right.

    python -m tests.checkpoints.fuzz --mutants 10000 --seed 1
    python -m tests.checkpoints.fuzz --seed 1 --number 4711       # one mutant again, with its traceback

Prints for each kind of mutant how many there were, how many got past parsing, were refused, or were read: with the same
weights, or with those that the mutant holds. Exits with 1 if any was answered by another exception, or if damage to a
file with checksums went unnoticed.
"""

import argparse
import copy
import faulthandler
import io
import json
import logging
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn

from sr_lightning.checkpoints.checkpoint import load_best
from sr_lightning.checkpoints.interop import read_weights, save_weights
from sr_lightning.checkpoints.legacy_pickle import read_module
from sr_lightning.errors import InputError
from sr_lightning.networks import ESPCN
from sr_lightning.runs.saved_config import config_to_resume, read_config
from sr_lightning.utils.tensor_files import PickledClassesError, load_tensors
from tests.helpers import compose

RUN = next((Path(__file__).parents[1] / "earlier_version" / "multirun" / "tiny").glob("*seed1*"))
ODD_NUMBERS = (0, -1, 1, 7, 2**31, 2**63, 10**30, -(2**40), 0.5, float("nan"), float("inf"), 1e308)
ODD_NAMES = (
    *("", "x", "..", "os.system", "antigravity.Net", "builtins.eval", "hydra.utils.get_method", "torch.nn.Linear"),
    *("sr_lightning.networks.edsr.torch.nn.Sequential", "sr_lightning.networks.VDSR", "sr_lightning.networks.layers.Y"),
    *("sr_lightning.networks.SRGANDiscriminator", "a\0b", "\ud800", "${oc.env:HOME}", "é" * 300, "Tanh", "Module"),
)
ODD_VALUES = (
    *ODD_NUMBERS,
    *ODD_NAMES,
    None,
    True,
    [],
    {},
    (),
    [[[[]]]],
    {"_target_": "os.system"},
    b"x",
    {3: 4},
    [None],
)


# Originals


@cache
def original(kind: str) -> bytes:
    """Return the bytes of a good file."""
    torch.manual_seed(0)
    network = ESPCN(scale=2, num_features=[4], kernel_sizes=[3, 3])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        if kind == "checkpoint":
            return (RUN / "checkpoints" / "best.ckpt").read_bytes()
        if kind == "config":
            return (RUN / "config.yaml").read_bytes()
        if kind == "safetensors":
            path = path.with_suffix(".safetensors")
            save_weights(network, path)
        elif kind.startswith("module"):
            torch.save({"epoch": 3, "model": network}, path, _use_new_zipfile_serialization=kind == "module zip")
        else:
            weights = {"params": network.state_dict()}
            torch.save(weights, path, _use_new_zipfile_serialization=kind == "weights zip")
        return path.read_bytes()


ZIPS = ("checkpoint", "weights zip", "module zip")
FILES = (*ZIPS, "weights stream", "module stream", "safetensors", "config")


def file_of(kind: str, folder: Path) -> Path:
    """Return the path of a mutant of a kind."""
    names = {"config": "config.yaml", "safetensors": "mutant.safetensors"}
    return folder / names.get(kind, "mutant.ckpt")


def read(kind: str, path: Path) -> dict[str, torch.Tensor] | None:
    """Read a file as the project does; return its weights."""
    if kind == "config":
        config_to_resume(run_to_resume(path), [f"resume={path.parent}"])
        return None
    if kind == "checkpoint":
        trained = load_best(path)
        with torch.inference_mode():
            trained.network(torch.zeros(1, trained.network.num_channels, 8, 8))
        return trained.network.state_dict()
    return read_weights(path)[0]


def run_to_resume(config: Path) -> DictConfig:
    """Return the config of `train.py resume=FOLDER`, with a checkpoint in the folder of a config.yaml."""
    last = config.with_name("checkpoints") / "last.ckpt"
    if not last.exists():
        last.parent.mkdir()
        last.write_bytes(original("checkpoint"))
    cfg = copy.copy(compose())
    cfg.resume = cfg.run_dir = str(config.parent)
    return cfg


def is_parsed(kind: str, path: Path) -> bool:
    """Return True if the format of a file is in order, whatever its content."""
    try:
        if kind == "config":
            read_config(path)
        elif kind == "safetensors":
            load_file(path)
        else:
            load_tensors(path)
    except PickledClassesError:
        try:
            read_module(path)
        except InputError as error:
            return "modules" in str(error)
    except Exception:
        return False
    return True


# Mutators: (good bytes, random generator) -> bytes


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, cables and downloads do, or worse."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 10))):
        place, length = rng.randrange(len(data)), rng.choice((1, 4, 16, 512))
        match rng.randrange(7):
            case 0 | 1:
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                data[place : place + length] = rng.randbytes(length)
            case 3:
                data[place : place + length] = bytes(length)
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = rng.randbytes(length)
            case 6:
                other = rng.randrange(len(data))
                data[place : place + length] = data[other : other + length]
        if not data:
            break
    return bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.1 else bytes(data)


def records_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(records: list[tuple[str, bytes]], compress: bool = False) -> bytes:
    """Write a zip file with right checksums; names may repeat."""
    buffer, method = io.BytesIO(), zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


def mutate_records(data: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, rename, cut, exchange or compress records."""
    records = records_of(data)
    place, other = rng.randrange(len(records)), rng.randrange(len(records))
    name, content = records[place]
    match rng.randrange(8):
        case 0:
            del records[place]
        case 1:
            records.append((name, rng.choice((content, b"", rng.randbytes(len(content))))))
        case 2:
            records[place] = (rng.choice((name.upper(), name + "x", "../" + name, name.partition("/")[2])), content)
        case 3:
            records[place] = (name, content[: rng.randrange(len(content) + 1)])
        case 4:
            records[place] = (name, content + rng.randbytes(rng.choice((1, 64, 4096))))
        case 5:
            records[place], records[other] = (name, records[other][1]), (records[other][0], content)
        case 6:
            return zipped(records, compress=True)
        case 7:
            records[place] = (name, bytes(10**6) if rng.random() < 0.5 else rng.randbytes(len(content)))
    return zipped(records)


OPCODES = [
    value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1
]


def odd_pickle(rng: random.Random) -> bytes:
    """Return a pickle of random opcodes, with arguments of about the right form."""
    arguments = (
        b"",
        b"\x01",
        b"\xff\xff\xff\x7f",
        struct.pack("<Q", 2**62),
        b"torch\nFloatStorage\n",
        b"os\nsystem\n",
        b"3\n",
    )
    parts = [rng.choice(OPCODES) + rng.choice(arguments) for _ in range(rng.randrange(1, 30))]
    return b"\x80\x02" + b"".join(parts) + b"."


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle in a zip file, and write it with the right checksum."""
    records = records_of(data)
    place = next(i for i, (name, _) in enumerate(records) if name.endswith("/data.pkl"))
    name, content = records[place]
    match rng.randrange(8):
        case 0:
            changed = odd_pickle(rng)
        case 1:  # an odd opcode inside
            at = rng.randrange(2, len(content))
            changed = content[:at] + odd_pickle(rng)[2:-1] + content[at:]
        case 2:
            changed = mutate_bytes(content, rng)
        case _:  # other values in a pickle that stays well-formed: sizes, strides, keys of storages, names
            changed = bytearray(content)
            places = argument_places(content)
            for _ in range(rng.choice((1, 1, 2))):
                changed[rng.choice(places)] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
    records[place] = (name, changed)
    return zipped(records)


@cache
def argument_places(content: bytes) -> list[int]:
    """Return the places of all bytes of whole numbers and texts in a pickle."""
    operations = list(pickletools.genops(content))
    ends = [position for _, _, position in operations[1:]] + [len(content)]
    heads = {"BININT1": 1, "BININT2": 1, "BININT": 1, "LONG1": 2, "BINUNICODE": 5}  # bytes before the argument
    return [
        place
        for (opcode, _, start), end in zip(operations, ends, strict=True)
        if opcode.name in heads
        for place in range(start + heads[opcode.name], end)
    ]


def odd_tensor(rng: random.Random) -> torch.Tensor:
    value = torch.randn(rng.choice(((), (0,), (1,), (16, 1, 9, 9), (3, 5))))
    return rng.choice(
        (
            lambda: value,
            lambda: value.fill_(float("nan")) if value.numel() else value,
            lambda: value * 1e30,
            lambda: value.to(rng.choice((torch.float64, torch.float16, torch.complex64, torch.int8, torch.bool))),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) if value.numel() else value,
            lambda: nn.Parameter(value),
        )
    )()


def containers(node: object, depth: int = 0) -> list[dict | list]:
    """List all containers in plain containers."""
    if not isinstance(node, dict | list) or depth > 8:
        return []
    items = node.values() if isinstance(node, dict) else node
    return [node, *(inner for item in items for inner in containers(item, depth + 1))]


def change_content(content: dict, rng: random.Random, odd: Callable[[], object]) -> object:
    """Remove, rename, replace or add values in plain containers, in the part that matters more often than elsewhere."""
    network = content.get("hyper_parameters", content).get("model", {}).get("network", content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        node = rng.choice((network, rng.choice([one for one in containers(content) if one] or [content])))
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node))) if node else None
        match rng.randrange(6):
            case 0 if isinstance(node, dict) and node:
                node.pop(key, None)
            case 1 if isinstance(node, dict) and node:
                node[rng.choice(("x", 3, None, "", f"{key}x"))] = node.pop(key, None)
            case 2 if isinstance(node, dict):
                node[rng.choice(("scale", "num_features", "num_blocks", "_target_", "bias", "x"))] = odd()
            case 3 if rng.random() < 0.05:
                return odd()
            case _ if node:
                node[key] = odd()
    return content


def mutate_content(data: bytes, rng: random.Random) -> bytes:
    """Write a well-formed torch file with odd content."""

    def odd() -> object:
        return odd_tensor(rng) if rng.random() < 0.4 else copy.deepcopy(rng.choice(ODD_VALUES))

    content = torch.load(io.BytesIO(data), weights_only=True)
    content = change_content(content, rng, odd)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file: its length, or its JSON."""
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    match rng.randrange(6):
        case 0:
            return rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
        case 1:
            changed = mutate_bytes(json.dumps(header).encode(), rng)
        case 2:  # the values of another tensor of this size, or another name
            one, other = rng.sample([name for name in header if name != "__metadata__"], 2)
            header[one], header[other] = header[other], header[one]
            changed = json.dumps(header).encode()
        case _:
            entry = header[rng.choice(list(header))]
            key = rng.choice(list(entry))
            entry[key] = rng.choice(
                ("F16", "F8_E4M3", "X", -1, [], [2**62, 4], [-1], [0, 10**12], [8, 0], None, {}, "x")
            )
            changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + values


def mutate_config(data: bytes, rng: random.Random) -> bytes:
    """Change lines or values of a config.yaml."""
    if rng.random() < 0.5:
        content = change_content(yaml.safe_load(data), rng, lambda: rng.choice(ODD_VALUES))
        try:
            return yaml.safe_dump(content).encode(errors="surrogatepass")
        except yaml.YAMLError:
            return repr(content).encode(errors="surrogatepass")
    lines = data.splitlines(keepends=True)
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[place]
        case 1:
            lines.insert(other, lines[place])
        case 2:
            lines[place] = (
                rng.choice((b" ", b"- ", b"\t", b"&a ", b"*a ", b"!!python/name:os.system ", b"? ")) + lines[place]
            )
        case 3:
            lines[place] = rng.choice(
                (b"a: &a [x, x]\nb: [*a, *a]\n", b"{" * 1000, b"[" * 5000, b"\x00", b"---\n", b"? [1]\n")
            )
        case 4:
            lines[place] = (
                lines[place].partition(b":")[0]
                + b": "
                + rng.choice((b"???", b"${name}", b"null", b"[", b"'", b"1e999"))
                + b"\n"
            )
    return b"".join(lines)


MUTATORS: dict[str, tuple[Callable[[bytes, random.Random], bytes], tuple[str, ...]]] = {
    "bytes": (mutate_bytes, FILES),
    "records": (mutate_records, ZIPS),
    "pickles": (mutate_pickle, ZIPS),
    "content": (mutate_content, ("checkpoint", "weights zip")),
    "headers": (mutate_header, ("safetensors",)),
    "configs": (mutate_config, ("config",)),
}
CHECKED = ("checkpoint", "safetensors")  # written by this project with checksums


def mutant(seed: int, number: int) -> tuple[str, str, bytes]:
    """Return the mutator, the kind of file and the bytes of a mutant, which depend on seed and number only."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(list(MUTATORS))
    mutate, kinds = MUTATORS[name]
    kind = rng.choice(kinds)
    return name, kind, mutate(original(kind), rng)


def answer(name: str, kind: str, data: bytes, folder: Path) -> str:
    """Read a mutant, and return the answer: "refused", "same" or "other".

    Raises:
        AssertionError: Damage to a file with checksums was not noticed.
        Exception: Anything but an InputError that reading raises.
    """
    path = file_of(kind, folder)
    path.write_bytes(data)
    try:
        weights = read(kind, path)
    except InputError as error:
        assert str(path) in str(error), f"the message does not name the file: {error}"
        return "refused"
    expected = expected_weights(kind)
    if weights and weights.keys() == expected.keys() and all(torch.equal(weights[k], expected[k]) for k in expected):
        return "same"
    if name in ("bytes", "headers") and kind in CHECKED:
        raise AssertionError("damage was not noticed")
    return "other"


@cache
def expected_weights(kind: str) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(kind, Path(folder))
        path.write_bytes(original(kind))
        return read(kind, path) or {}


def fuzz(seed: int, numbers: range) -> tuple[dict[str, Counter], dict[int, str]]:
    """Read mutants.

    Returns:
        Name of the mutator -> answer -> number of mutants; and number of a mutant -> traceback of a fault.
    """
    counts: dict[str, Counter] = {name: Counter() for name in MUTATORS}
    faults = {}
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        for number in numbers:
            name, kind, data = mutant(seed, number)
            try:
                counts[name][answer(name, kind, data, Path(folder))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                faults[number] = f"{name} of {kind}: {traceback.format_exc()}"
            path = file_of(kind, Path(folder))
            counts[name]["mutants"] += 1
            counts[name]["past parsing"] += is_parsed(kind, path)
    logging.disable(logging.NOTSET)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--number", type=int, help="only this mutant")
    options = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # a mutant cannot take the machine's memory
    numbers = range(options.mutants) if options.number is None else range(options.number, options.number + 1)
    counts, faults = fuzz(options.seed, numbers)
    columns = ("mutants", "past parsing", "refused", "same", "other")
    print(f"seed {options.seed}\n{'':10}" + "".join(f"{column:>14}" for column in columns))
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{name:10}" + "".join(f"{count[column]:14,}" for column in columns))
    for number, text in faults.items():
        print(f"\n--seed {options.seed} --number {number}: {text}")
    print(f"\n{len(faults)} faults; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

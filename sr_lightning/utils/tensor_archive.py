"""The zip files that torch.save writes, checked without torch: structure, checksums, sizes of tensors.

torch reads no checksum, and takes a storage's size from the pickle without comparing it with the record.
"""

import io
import logging
import mmap
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_lightning.errors import InputError
from sr_lightning.utils.messages import MAX_LISTED, listing, reason

log = logging.getLogger(__name__)

MAGIC = b"PK\x03\x04"
ITEM_SIZES = {  # bytes
    "ComplexDoubleStorage": 16,
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "QInt8Storage", "QUInt8Storage"), 1),
    "UntypedStorage": 1,
}


@dataclass(frozen=True)
class TensorArchive:
    """A file whose records are all there and large enough for its tensors.

    Attributes:
        content: The pickled object: a `Storage` for each tensor, an `Unknown` for each other object.
        damaged: Tensors, or records that belong to none, whose checksum is wrong.
        has_checksums: False if no record has one; `damaged` is then empty.
    """

    content: Any
    damaged: list[str]
    has_checksums: bool


@dataclass(frozen=True)
class Storage:
    """The values of a tensor: the record `data/<key>`."""

    key: str


class Unknown:
    """Stand-in for anything that is not a tensor: it can be constructed and given a state, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Unknown":
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class InertUnpickler(pickle._Unpickler):  # noqa: SLF001
    """Unpickler that imports and runs nothing: all that a pickle names becomes an `Unknown`, except a few names.

    The base class is the one in Python: in C, a single opcode can allocate 34 GB.

    Args:
        data: The file, at the beginning of a pickle.
        known: (module, name) -> the object to use. Created for each file: a pickle can set attributes of classes and
            functions, which must not outlive it.
    """

    def __init__(self, data: Any, known: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(data, encoding="latin1")  # Python 2 wrote its strings as bytes
        self.known = known

    def find_class(self, module: str, name: str) -> Any:
        return self.known.get((module, name)) or type(name, (Unknown,), {})


class _Unpickler(InertUnpickler):
    """Reads tensors as `Storage`, after a check of their size."""

    def __init__(self, data: Any, size_of: Callable[[str], int]) -> None:
        self.size_of = size_of
        rebuild = {name: lambda storage, *_: storage for name in ("tensor", "tensor_v2", "parameter")}
        super().__init__(
            data,
            {("collections", "OrderedDict"): type("Ordered", (dict,), {})}
            | {("torch._utils", f"_rebuild_{name}"): function for name, function in rebuild.items()},
        )

    def persistent_load(self, reference: Any) -> Storage:
        kind, storage_type, key, _, numel = reference
        item_size = ITEM_SIZES.get(storage_type.__name__)
        if kind != "storage" or item_size is None or not key.isascii():  # torch and zipfile decode others differently
            raise ValueError(f"a reference to {kind} {storage_type.__name__}")
        if not 0 <= numel * item_size <= self.size_of(key):
            raise ValueError(f"{numel} values of {item_size} bytes in record data/{key} of {self.size_of(key)} bytes")
        return Storage(key)


def describes_network(checkpoint: Any) -> bool:
    """Return True if a checkpoint's config names the network's class, where train.py stores it."""
    for key in ("hyper_parameters", "model", "network", "_target_"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            return False
        checkpoint = checkpoint[key]
    return isinstance(checkpoint, str)


def check_archive(path: str | Path) -> Any:
    """Check a file of torch.save, if it is a zip file, and warn if another project's file has no or wrong checksums.

    Returns:
        Its `content`; None if it is no zip file.

    Raises:
        InputError: The file is missing, damaged or cut off, or is a checkpoint of this project with a wrong checksum.
    """
    if not is_archive(path):
        return None
    archive = read_archive(path)
    if archive.damaged and describes_network(archive.content):
        raise InputError(f"{path} is damaged: wrong checksum of {', '.join(archive.damaged[:MAX_LISTED])}")
    if archive.damaged:
        log.warning("%s may be damaged, its numbers may be wrong. Wrong checksum of:%s", path, listing(archive.damaged))
    if not archive.has_checksums:
        log.warning("%s was written without checksums: damage cannot be noticed", path)
    return archive.content


def is_archive(path: str | Path) -> bool:
    """Return True if torch reads a file as a zip file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == MAGIC
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_archive(path: str | Path) -> TensorArchive:
    """Check a zip file of torch.save. The pickle in it imports and runs nothing here.

    Raises:
        InputError: The file is damaged, cut off, a TorchScript program, or was not written by torch.save.
    """
    try:
        return _read(Path(path))
    except InputError:
        raise
    except Exception as error:  # a damaged directory or pickle can raise anything
        raise InputError(f"{path} cannot be read, it is damaged or cut off: {reason(error)}") from error


def _read(path: Path) -> TensorArchive:
    with (
        zipfile.ZipFile(path) as archive,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        infos = archive.infolist()
        if any(info.filename.split("/")[1:3] == ["code", "__torch__"] for info in infos):
            raise InputError(f"{path} is a TorchScript program, which runs code: use the network's file of weights")
        if any(info.filename.endswith("/archive_format") for info in infos):
            raise InputError(f"{path} is a network exported by torch.export: give the checkpoint that it was made from")
        _check_directory(infos, len(data))
        root = infos[0].filename.partition("/")[0]
        by_name = {info.filename.removeprefix(f"{root}/"): info for info in infos}
        if "data.pkl" not in by_name:
            raise InputError(f"{path} is no file of weights: a zip file with {infos[0].filename}, without data.pkl")
        sums = {name: zlib.crc32(record(data, info)) for name, info in by_name.items()}
        pickled = bytes(record(data, by_name["data.pkl"]))
    has_checksums = any(info.CRC for info in infos)
    wrong = [name for name, info in by_name.items() if has_checksums and sums[name] != info.CRC]
    if "data.pkl" in wrong:
        raise ValueError("the checksum of its list of tensors is wrong")
    content = _Unpickler(io.BytesIO(pickled), lambda key: by_name[f"data/{key}"].file_size).load()
    names = storage_names(content) if wrong else {}
    return TensorArchive(content, [names.get(name.removeprefix("data/"), name) for name in wrong], has_checksums)


def _check_directory(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse all that torch.save does not write: compressed, repeated or overlapping records."""
    if not infos or min(info.header_offset for info in infos) != 0:
        raise ValueError("its first record is not at its beginning")
    if packed := [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1]:
        raise ValueError(f"record {packed[0]} is compressed or encrypted, which torch.save does not do")
    if len({info.filename.lower() for info in infos}) < len(infos):  # torch ignores case
        raise ValueError("it has two records of one name")
    if any(info.compress_size != info.file_size for info in infos) or sum(info.file_size for info in infos) > size:
        raise ValueError("its records are larger than the file")


def record(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an uncompressed record, as torch finds them.

    Args:
        data: The whole file.
        info: The record's entry in the directory.

    Raises:
        ValueError: The record is not where the directory says.
    """
    start = info.header_offset
    name, extra = (int.from_bytes(data[start + place : start + place + 2], "little") for place in (26, 28))
    values = data[start + 30 + name + extra :][: info.file_size]
    if data[start : start + 4] != MAGIC or len(values) < info.file_size:
        raise ValueError(f"record {info.filename} is not where the directory says")
    return values


def storage_names(content: Any) -> dict[str, str]:
    """Return the key of each storage with the dotted name of its first tensor: {"0": "network.head.weight"}."""
    names: dict[str, str] = {}
    seen: set[int] = set()  # a pickle can repeat a container as often as it likes
    pending = [("", content)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Storage):
            names.setdefault(value.key, name.removeprefix("state_dict."))
        elif isinstance(value, dict | list | tuple | Unknown) and id(value) not in seen:
            seen.add(id(value))
            value = value.state if isinstance(value, Unknown) else value
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{name}.{key}".lstrip("."), item) for key, item in reversed(list(items))]
    return names

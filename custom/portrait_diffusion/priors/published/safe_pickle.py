"""Reading the published pickles without running anything that is in them.

The files are plain pickles of PyTorch modules whose classes carry their own source, which the authors' reader executes.
Here every global must be on `ALLOWED`; classes become inert records that keep what the pickle hands them, and embedded
source stays text. Storages are nested legacy PyTorch pickles, read by `storages`. Sizes are checked before memory is
asked for, and nothing is hashed, compared or shown that could take longer than the file is long.
"""
import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...errors import UsageError
from .plain_values import LARGEST_NUMBER, plain, shown
from .storages import StorageReader

LONGEST_LIST = 64
"""Items of a set or a shape that is copied."""
ADVICE = "download the file again from the place that docs/priors.md names"
SOURCE = "give a file listed in docs/priors.md"


class Refused(Exception):
    """A pickle asks for something that no published file needs; the message is the reason, without the file's name."""


class Record:
    """An object of a foreign class: its name, its arguments, its state. It has no behaviour."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self):
        raise TypeError("Records of foreign objects are not meant to be written.")


class Held:
    """A tensor or a storage while the pickle is read: it has nothing that an opcode could call."""

    __slots__ = ("tensor", "is_storage")

    def __init__(self, tensor: torch.Tensor, is_storage: bool = False):
        self.tensor, self.is_storage = tensor, is_storage

    def __setstate__(self, state: Any) -> None:
        raise Refused("a tensor comes with a state, which no published file has")


class _Call:
    """A stand-in function that a pickle may call, and cannot change."""

    __slots__ = ("function",)

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a function comes with a state, which no published file has")


class Plain(dict):
    """Stand-in of ``EasyDict`` and ``OrderedDict``: an empty dictionary that opcodes fill, and nothing else."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def record_class(name: str) -> type[Record]:
    """A class of records for foreign objects of the class `name`."""
    return type("Record", (Record,), {"origin": name})


def _persistent(meta: Any) -> Record:
    """Stand-in of ``torch_utils.persistence._reconstruct_persistent_obj``: keeps name and state, ignores the source."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise Refused("a persistent object is not in the published form")
    record = Record()
    record.origin, record.state = str(plain(meta.get("class_name")))[:200], meta["state"]
    return record


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Held:
    """Stand-in of ``torch._utils._rebuild_tensor_v2``: a view of a storage, never beyond it, never expanded."""
    if not isinstance(storage, Held) or not storage.is_storage:
        raise Refused("a tensor is made of something that is no storage")
    storage = storage.tensor
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride) or len(size) > 16:
        raise Refused("a tensor has a malformed shape")
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise Refused("a tensor has a malformed shape")
    if not all(0 <= n <= storage.numel() for n in numbers):
        raise Refused(f"a tensor of shape {str(size)[:60]} does not fit its storage of {storage.numel()} numbers")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if count > storage.numel() or (count and last >= storage.numel()):
        raise Refused(f"a tensor of shape {str(size)[:60]} does not fit its storage of {storage.numel()} numbers")
    return Held(torch.as_strided(storage, size, stride, offset))


def _parameter(data: Any, *rest: Any) -> Held:
    """Stand-in of ``torch._utils._rebuild_parameter``."""
    if not isinstance(data, Held) or data.is_storage:
        raise Refused("a parameter is made of something that is no tensor")
    return data


def _names(items: Any = ()) -> set:
    """Stand-in of ``set``, which protocols 2 and 3 use for the names of buffers."""
    if not isinstance(items, list) or len(items) > LONGEST_LIST or not all(isinstance(name, str) for name in items):
        raise Refused("a set is not one of names, as in published files")
    return set(items)


def _shape(numbers: Any = ()) -> tuple:
    """Stand-in of ``torch.Size``."""
    if not isinstance(numbers, list | tuple) or len(numbers) > LONGEST_LIST:
        raise Refused("a tensor has a malformed shape")
    return tuple(numbers)


_NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "b1": "?", "u1": "B"}


def _number(dtype: Any, data: Any = b"") -> float | int:
    """Stand-in of ``numpy.core.multiarray.scalar``: a little-endian number."""
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    form = _NUMBERS.get(code.lstrip("<|=") if isinstance(code, str) else None)
    if form is None or not isinstance(data, bytes) or len(data) != struct.calcsize(form):
        raise Refused("a NumPy number is malformed")
    return struct.unpack("<" + form, data)[0]


def _allowed() -> dict[tuple[str, str], Any]:
    """(module, name) of every global that published files name, with what takes its place."""
    table: dict[tuple[str, str], Any] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_persistent),
        ("dnnlib.util", "EasyDict"): Plain,
        ("collections", "OrderedDict"): Plain,
        ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
        ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
        ("builtins", "set"): _Call(_names),
        ("__builtin__", "set"): _Call(_names),
        ("torch", "float32"): torch.float32,
        ("torch", "Size"): _Call(_shape),
    }
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[package, "scalar"] = _Call(_number)
        table[package, "_reconstruct"] = record_class("numpy._reconstruct")
    inert = {
        "numpy": ["dtype", "ndarray"],
        "torch.nn.modules.container": ["Sequential"],
        "torch.nn.modules.activation": ["Softplus"],
        "training.volumetric_rendering.ray_sampler": ["RaySampler"],
        "training.volumetric_rendering.renderer": ["ImportanceRenderer"],
        "training.volumetric_rendering.ray_marcher": ["MipRayMarcher2"],
        "training.triplane": ["OSGDecoder"],
        "training.smpl_triplane": ["GPoseBranch", "OSGDecoder"],
        "training.aligned_smpl": ["AlignedSMPL"],
        "smplx.body_models": ["SMPL"],
        "smplx.vertex_joint_selector": ["VertexJointSelector"],
    }
    for module, names in inert.items():
        for name in names:
            table[module, name] = record_class(f"{module}.{name}")
    return table


ALLOWED = _allowed()


def check_key(key: Any) -> None:
    """Raise Refused for what is not fit to be hashed, as keys of dictionaries and members of sets are.

    The hash of a tuple walks through its items: thirty tuples, each twice in the next one, take 2**30 steps, and a
    million within one another overflow the stack. Numbers of more than 64 bits can be chosen to have all one hash.
    """
    if isinstance(key, tuple | frozenset):
        raise Refused("a dictionary or a set has a tuple or a set as a key, which no published file has")
    if isinstance(key, int) and abs(key) >= LARGEST_NUMBER:
        raise Refused("a dictionary or a set has a number of more than 64 bits as a key, which no published file has")


def _checking_keys(opcode: bytes, where: slice) -> Callable[["_Unpickler"], None]:
    """Python's own step for an opcode that hashes what lies at `where` on the stack, after `check_key` of each."""
    step = pickle._Unpickler.dispatch[opcode[0]]

    def checked(reader: "_Unpickler") -> None:
        for key in reader.stack[where]:
            check_key(key)
        step(reader)

    return checked


_KEYS = {
    pickle.SETITEM: slice(-2, -1), pickle.SETITEMS: slice(0, None, 2), pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(None), pickle.FROZENSET: slice(None),
}  # fmt: skip
"""Opcodes that hash, and where the keys lie on the stack, of which Python's reader keeps what is above the mark."""


class _Unpickler(pickle._Unpickler):
    """Pickle reader that knows `ALLOWED`, storages and encoded bytes, and nothing else.

    What it lets a pickle copy is bounded: a few opcodes that repeat a copy of something long would ask for all memory.
    It is Python's reader in Python, not the one in C, for keys can be looked at before they are hashed (`check_key`).
    """

    dispatch = pickle._Unpickler.dispatch | {opcode[0]: _checking_keys(opcode, at) for opcode, at in _KEYS.items()}

    def __init__(self, file: BinaryIO, storages: StorageReader):
        super().__init__(file)
        self.storages = storages
        self.left = storages.left

    def encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Stand-in of ``_codecs.encode``, which protocol 2 uses for bytes."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise Refused("text is encoded in a way that no published file uses")
        self.left -= len(text)
        if self.left < 0:
            raise Refused("its encoded bytes take more memory than the file has bytes")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _Call(lambda data: Held(self.storages.load(data), is_storage=True))
        if (module, name) == ("_codecs", "encode"):
            return _Call(self.encoded)
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.startswith("dnnlib.tflib"):
            raise Refused("it is a TensorFlow network, of StyleGAN2's time before PyTorch")
        raise Refused(f"it asks for '{shown(f'{module}.{name}', 120)}', which no published file does")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to objects outside the file")


_EXTENSIONS = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID", "BINPERSID", "INST", "OBJ"}


def check_opcodes(file: BinaryIO, limit: int = 2_000_000) -> None:
    """Walk through a pickle without building anything.

    Raises: Refused for opcodes that no published file has, for a memo number that would ask for memory, for too many
        opcodes; ValueError or EOFError where the pickle is cut off or is none.
    """
    highest = count = 0
    for code, argument, _ in pickletools.genops(file):
        count += 1
        if code.name in _EXTENSIONS:
            raise Refused(f"it uses the opcode {code.name}, which no published file does")
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            highest = max(highest, int(argument))
        if count > limit or highest > count:
            raise Refused("its list of objects is larger than any published file's")


def read_pickle(path: Path, numbers: bool = True) -> Any:
    """The contents of a published pickle, classes replaced by `Record`.

    Args: numbers: False leaves the numbers of the tensors unread (device ``meta``).
    Raises: UsageError, one sentence: a cut-off file, a global that is not on the list, a tensor that does not fit.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            check_opcodes(file)
            file.seek(0)
            return _Unpickler(file, StorageReader(size, numbers)).load()
    except (Refused, StorageReader.Malformed) as error:
        raise UsageError(f"{path} was not opened: {error}; {SOURCE}.") from error
    except (EOFError, pickle.UnpicklingError, ValueError, IndexError, struct.error) as error:
        raise UsageError(
            f"{path} ({size} bytes) is cut off or no checkpoint ({_first(error)}); {ADVICE} and compare its SHA-256."
        ) from error
    except (TypeError, AttributeError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is no well-formed checkpoint ({_first(error)}); {SOURCE}.") from error


def read_pickle_bytes(data: bytes, budget: int) -> Any:
    """As `read_pickle`, of bytes, without turning errors into sentences: for tests."""
    check_opcodes(io.BytesIO(data))
    return _Unpickler(io.BytesIO(data), StorageReader(budget)).load()


def _first(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return shown(text, 120)

"""Nested storages of the published pickles: legacy PyTorch files inside a bytes object.

Each is four small pickles (magic number, protocol, machine, the storage's persistent id), a list of keys, and the
numbers. Type and length are checked against the bytes at hand first; then `torch.load` reads it with ``weights_only``
and every location mapped to the CPU: attributes of published modules may have been saved from a GPU.
"""
import io
import pickle
import pickletools

import torch
from torch import Tensor

from .plain_values import shown

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
"""Names of the storage types and what their numbers are."""
LONGEST_HEADER = 4096
SHARING = ("GET", "BINGET", "LONG_BINGET", "DUP")
"""Opcodes by which a pickle names something twice: without them, whatever is made is no larger than its bytes."""


class _HeaderUnpickler(pickle.Unpickler):
    """Reads a header pickle: the only globals are the names of storage types, which stay names."""

    def find_class(self, module: str, name: str) -> str:
        if module == "torch" and name in STORAGES:
            return name
        wanted = shown(f"{module}.{name}", 120)
        raise StorageReader.Malformed(f"a tensor asks for '{wanted}', which no published file does")

    def persistent_load(self, pid: object) -> tuple:
        return ("pid", pid)


class StorageReader:
    """Reads storages until `budget` bytes are used up: no file can hold more numbers than bytes.

    Args:
        budget: bytes; the size of the file.
        numbers: False checks the headers alone and gives tensors on the device ``meta``.
    """

    class Malformed(Exception):
        """The bytes are no storage of the published kind; the message is the reason."""

    def __init__(self, budget: int, numbers: bool = True):
        self.left, self.numbers = budget, numbers

    def load(self, data: object) -> Tensor:
        """One-dimensional tensor of a storage's numbers, on the CPU (on ``meta`` without the numbers).

        Args: data: bytes, as ``torch.save(storage)`` in the legacy format.
        Raises: Malformed.
        """
        if not isinstance(data, bytes | bytearray):
            raise self.Malformed("a tensor's storage is not made of bytes")
        self.left -= len(data)
        if self.left < 0:
            raise self.Malformed("its tensors take more memory than the file has bytes")
        data = bytes(data)
        kind, count = self._check(data)
        if not self.numbers:
            return torch.empty(count, dtype=STORAGES[kind], device="meta")
        try:
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
            text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise self.Malformed(f"a tensor's storage cannot be read ({text})") from error
        return torch.tensor([], dtype=storage.dtype).set_(storage)

    def _check(self, data: bytes) -> tuple[str, int]:
        """Type and count of the numbers; Malformed unless header and length agree, with nothing before or after."""
        file = io.BytesIO(data)
        magic, protocol, machine, pid, keys = (self._header(file) for _ in range(5))
        if magic != MAGIC or protocol != 1001:
            raise self.Malformed("a tensor's storage is not in PyTorch's legacy format")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise self.Malformed("a tensor was saved on a big-endian machine")
        pid = pid[1] if isinstance(pid, tuple) and len(pid) == 2 and pid[0] == "pid" else None
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage" or pid[1] not in STORAGES or pid[5]:
            raise self.Malformed("a tensor's storage is described in an unknown way")
        _, kind, key, _, count, _ = pid
        body = len(data) - file.tell()
        said = int.from_bytes(data[file.tell() : file.tell() + 8], "little")
        if keys != [key] or not isinstance(count, int) or said != count or body != 8 + count * STORAGES[kind].itemsize:
            claim = f"a tensor claims {str(count)[:24]} numbers ({kind})"
            raise self.Malformed(f"{claim} but {max(body - 8, 0)} bytes follow")
        return kind, count

    def _header(self, file: io.BytesIO) -> object:
        start = file.tell()
        try:
            for code, _, position in pickletools.genops(file):
                if code.name in SHARING:
                    raise self.Malformed("a tensor's header says something by reference")
                if position - start > LONGEST_HEADER:
                    raise self.Malformed("a tensor's header is too long")
            end = file.tell()
            if end - start > LONGEST_HEADER:
                raise self.Malformed("a tensor's header is too long")
            return _HeaderUnpickler(io.BytesIO(file.getvalue()[start:end])).load()
        except (ValueError, EOFError, IndexError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            raise self.Malformed("a tensor's storage is cut off or malformed") from error

"""Read the constant tensors of an ONNX file without the ``onnx`` package.

ONNX files are Protocol Buffers messages: a message is a list of (field number << 3 | wire type) keys with their values.
The field numbers used here are those of ``onnx.proto`` (ONNX IR): ModelProto.graph = 7, GraphProto.initializer = 5,
TensorProto.dims = 1, data_type = 2, float_data = 4, name = 8, raw_data = 9.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UsageError

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Little-endian base-128 integer and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer of more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs of one message: integers, or the bytes of everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 2, 5):
            if wire == 2:
                length, position = _varint(data, position)
            else:
                length = 8 if wire == 1 else 4
            if position + length > len(data):
                raise ValueError("a field that runs past the end")
            value, position = data[position : position + length], position + length
        else:
            raise ValueError(f"the unknown wire type {wire}")
        yield key >> 3, value


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    dims: list[int] = []
    code, name, payload = 0, "", b""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 2:
            code = value
        elif number == 8:
            name = bytes(value).decode("utf-8")
        elif number in (4, 9):
            payload = bytes(value)
    if code not in _DTYPES:
        raise ValueError(f"the data type {code} of tensor '{name}'")
    return name, np.frombuffer(payload, _DTYPES[code]).reshape(dims)


def read_initializers(path: str | Path) -> dict[str, np.ndarray]:
    """Constant tensors of an ONNX model by name.

    Args:
        path: file with float32, int8, uint8, int32 or int64 tensors stored inside it.
    Returns: name -> read-only array.
    Raises: UsageError when the file is not such an ONNX model.
    """
    try:
        model = memoryview(Path(path).read_bytes())
        graph = next(value for number, value in _fields(model) if number == 7)
        return dict(_tensor(value) for number, value in _fields(graph) if number == 5)
    except (ValueError, IndexError, StopIteration, TypeError) as error:
        raise UsageError(f"'{path}' is not an ONNX model with plain constant tensors: it holds {error}.") from error

"""Protobuf message classes that are described in Python, because the runtime library cannot compile .proto files.

Only the fields that an import reads are described; protobuf skips all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from server.errors import ImportFileError

_Field = descriptor_pb2.FieldDescriptorProto

DOUBLE: Final = _Field.TYPE_DOUBLE
FLOAT: Final = _Field.TYPE_FLOAT
INT32: Final = _Field.TYPE_INT32
INT64: Final = _Field.TYPE_INT64
STRING: Final = _Field.TYPE_STRING
BYTES: Final = _Field.TYPE_BYTES
BOOL: Final = _Field.TYPE_BOOL


def field(name: str, number: int, kind: _Field.Type.ValueType | str, *, repeated: bool = False) -> _Field:
    """Return a field. ``kind`` is a scalar type, or the name of a message of the same file."""
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    described = _Field(name=name, number=number, label=label)
    if isinstance(kind, str):
        described.type, described.type_name = _Field.TYPE_MESSAGE, kind
    else:
        described.type = kind
    return described


def message(name: str, *fields: _Field, one_of: tuple[_Field, ...] = ()) -> descriptor_pb2.DescriptorProto:
    """Return a message. Of the fields in ``one_of``, the last one in the data is set; the oneof is called "value"."""
    described = descriptor_pb2.DescriptorProto(name=name, field=[*fields, *one_of])
    if one_of:
        described.oneof_decl.add(name="value")
        for item in described.field[len(fields) :]:
            item.oneof_index = 0
    return described


def message_class(package: str, *messages: descriptor_pb2.DescriptorProto) -> Any:
    """Return the class of the first message; the others are those that it contains."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", message_type=messages
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{messages[0].name}"))


def parsed(kind: Any, data: bytes, path: Path, number: int) -> Any:
    """Return the message in a record. Raises `ImportFileError` that names the record if it cannot be parsed."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ImportFileError(path, f"record {number}", f"the record cannot be parsed ({error})") from error

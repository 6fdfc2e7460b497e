# SPDX-License-Identifier: Apache-2.0
"""Records declared by the offsets that the manual prints, compiled once around one struct.Struct.

    @layout(size=128)
    class Pcmd(Record):
        enclaveid: int = at(64, U64)
        mac: bytes = at(112, raw(16))

What no field covers is reserved: ``reserved_is_zero`` is for the #GP checks.  A field that overlaps
another or leaves the record fails at import.  Fields are read-only to the type checker only, because a
frozen dataclass takes two to five times as long to build.  This is the only module that writes
format strings.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, dataclass_transform

T = TypeVar("T")
R = TypeVar("R", bound="Record")

Buffer: TypeAlias = bytes | bytearray | memoryview


class Kind(Generic[T]):
    """How a field is stored: a format character, or a record inside the record."""

    __slots__ = ("code", "nested", "size")

    def __init__(self, code: str, nested: "type[Record] | None" = None) -> None:
        self.code = code
        self.nested = nested
        self.size = struct.calcsize("<" + code)


U8: Kind[int] = Kind("B")
U16: Kind[int] = Kind("H")
U32: Kind[int] = Kind("I")
U64: Kind[int] = Kind("Q")
S32: Kind[int] = Kind("i")


def raw(length: int) -> Kind[bytes]:
    """Return the kind of a field of so many plain bytes."""
    return Kind(f"{length}s")


def record(cls: type[R]) -> Kind[R]:
    """Return the kind of a field that is another record."""
    return Kind(f"{cls.SIZE}s", cls)


class _Field:
    __slots__ = ("kind", "offset")

    def __init__(self, offset: int, kind: Kind[Any]) -> None:
        self.offset = offset
        self.kind = kind


def at(offset: int, kind: Kind[T]) -> T:
    """Declare a field at a byte offset of its record."""
    field: Any = _Field(offset, kind)
    return field  # type: ignore[no-any-return]  # the type checker sees the field's value


@dataclass_transform(frozen_default=True, field_specifiers=(at,))
class Record:
    """A little-endian record of fixed size; subclasses are made by ``layout``."""

    __slots__: tuple[str, ...] = ()

    SIZE: ClassVar[int]
    OFFSETS: ClassVar[dict[str, int]]
    _FORMAT: ClassVar[str]
    _KINDS: ClassVar[tuple[tuple[str, Kind[Any]], ...]]
    _RESERVED: ClassVar[tuple[tuple[int, bytes], ...]]

    # The first use of a record compiles its methods, which then stand in front of the three below: a
    # program that starts needs few of the records it imports, and compiling them all would cost it 5 ms.

    def __init__(self, *values: Any, **named: Any) -> None:
        _compile(type(self))
        self.__init__(*values, **named)  # type: ignore[misc]

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read a record from a buffer; struct.error if the buffer is too short."""
        _compile(cls)
        return cls.decode(buffer, offset)

    def encode_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write the record into a buffer, reserved bytes as zero.

        struct.error if an integer does not fit its field or the record the buffer; ValueError if bytes
        have not exactly their field's length.
        """
        _compile(type(self))
        self.encode_into(buffer, offset)

    def encode(self) -> bytes:
        """Return the record's bytes; fails as ``encode_into``."""
        buffer = bytearray(self.SIZE)
        self.encode_into(buffer)
        return bytes(buffer)

    @classmethod
    def blank(cls) -> Self:
        """Return a record of zeros."""
        return cls.decode(bytes(cls.SIZE))

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; TypeError if a name is none of the record's."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return type(self)(**(values | changes))

    @classmethod
    def reserved_is_zero(cls, buffer: Buffer, offset: int = 0) -> bool:
        """Tell whether all bytes that no field covers are zero; ValueError if the buffer is too short."""
        if offset < 0 or len(buffer) - offset < cls.SIZE:
            message = (
                f"{cls.__name__} is {cls.SIZE} bytes; the buffer has {len(buffer)}, from {offset}"
            )
            raise ValueError(message)
        for start, zeros in cls._RESERVED:
            first = offset + start
            if buffer[first : first + len(zeros)] != zeros:
                return False
        return True

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __repr__(self) -> str:
        fields = (f"{name}={_shown(getattr(self, name))}" for name in self.__slots__)
        return f"{type(self).__name__}({', '.join(fields)})"


def _shown(value: object) -> str:
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, bytes):
        return f"bytes.fromhex({value.hex()!r})"
    return repr(value)


def layout(*, size: int) -> Callable[[type[R]], type[R]]:
    """Make a class of ``at`` declarations a record of so many bytes; TypeError if they do not fit."""

    def make(declared: type[R]) -> type[R]:
        namespace = dict(vars(declared))
        namespace.pop("__dict__", None)
        namespace.pop("__weakref__", None)
        fields = tuple(
            (name, value.offset, value.kind)
            for name, value in vars(declared).items()
            if isinstance(value, _Field)
        )
        for name, _, _ in fields:
            del namespace[name]
        ordered = tuple(sorted(fields, key=lambda field: field[1]))
        namespace["__slots__"] = tuple(name for name, _, _ in fields)
        namespace["SIZE"] = size
        namespace["OFFSETS"] = {name: offset for name, offset, _ in fields}
        namespace["_KINDS"] = tuple((name, kind) for name, _, kind in ordered)
        namespace["_FORMAT"], namespace["_RESERVED"] = _fit(declared.__name__, ordered, size)
        # A new class, because __slots__ cannot be added to one that exists.
        made: Any = type(declared.__name__, declared.__bases__, namespace)
        return made  # type: ignore[no-any-return]

    return make


# Returns the format string and the reserved stretches, those of nested records among them.
def _fit(
    owner: str, ordered: tuple[tuple[str, int, Kind[Any]], ...], size: int
) -> tuple[str, tuple[tuple[int, bytes], ...]]:
    codes = ["<"]
    reserved: list[tuple[int, bytes]] = []
    end = 0
    for name, offset, kind in ordered:
        if offset < end:
            message = (
                f"{owner}.{name} at {offset} overlaps the field before it, which ends at {end}"
            )
            raise TypeError(message)
        if offset > end:
            codes.append(f"{offset - end}x")
            reserved.append((end, bytes(offset - end)))
        codes.append(kind.code)
        if kind.nested is not None:
            reserved += [(offset + start, zeros) for start, zeros in kind.nested._RESERVED]  # noqa: SLF001
        end = offset + kind.size
    if end > size:
        message = f"{owner} is {size} bytes, but its last field ends at {end}"
        raise TypeError(message)
    if end < size:
        codes.append(f"{size - end}x")
        reserved.append((end, bytes(size - end)))
    return "".join(codes), tuple(reserved)


# Generated source, as dataclasses does: unpacking into attributes by a loop is three times as slow.
def _compile(cls: type[Record]) -> None:
    codec = struct.Struct(cls._FORMAT)
    environment: dict[str, Any] = {"unpack": codec.unpack_from, "pack": codec.pack_into}
    init = [f"def __init__(self, {', '.join(cls.__slots__)}):"]
    init += [f" self.{name} = {name}" for name in cls.__slots__]
    targets = ", ".join(f"self.{name}" for name, _ in cls._KINDS)
    decode = ["def decode(cls, buffer, offset=0):", " self = cls.__new__(cls)"]
    decode.append(f" {targets}, = unpack(buffer, offset)")
    encode = ["def encode_into(self, buffer, offset=0):"]
    packed = []
    for name, kind in cls._KINDS:
        if kind.nested is not None:
            _compile(kind.nested)
            environment[f"decode_{name}"] = kind.nested.decode
            decode.append(f" self.{name} = decode_{name}(self.{name})")
            packed.append(f"self.{name}.encode()")
            continue
        packed.append(f"self.{name}")
        if kind.code.endswith("s"):
            # struct would pad or cut without a word.
            encode += [
                f" if len(self.{name}) != {kind.size}:",
                f"  raise ValueError(f'{cls.__name__}.{name} is {kind.size} bytes, not {{len(self.{name})}}')",
            ]
    decode.append(" return self")
    encode.append(f" pack(buffer, offset, {', '.join(packed)})")
    made: dict[str, Any] = {}
    exec("\n".join([*init, *decode, *encode]), environment, made)  # noqa: S102
    cls.__init__ = made["__init__"]  # type: ignore[method-assign]
    cls.decode = classmethod(made["decode"])  # type: ignore[method-assign,assignment]
    cls.encode_into = made["encode_into"]  # type: ignore[method-assign]

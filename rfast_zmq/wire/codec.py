"""A message as bytes, and back.

A message is two frames, ``[header, payload]``. Joined, they are one msgpack object, which any msgpack library reads:
an array of two, a map and a byte string. Sent apart, the payload needs no copy: the header frame ends with the
``bin 32`` prefix of the byte string, and the payload frame is the tensor's own memory.

    header frame    0x92  map  0xc6 length          (length: 4 bytes, big-endian)
    payload frame   the coordinates of the bucket, little-endian

The map has exactly these ten keys:

    ========== ======= ==================================================================================
    key        type    meaning
    ========== ======= ==================================================================================
    ``v``      int     version of this format, 1
    ``run``    str     id of the run
    ``src``    int     rank of the sender
    ``dst``    int     rank of the receiver
    ``graph``  str     ``W``: the pull graph, a model; ``A``: the push graph, gradient mass
    ``layout`` str     16 hex digits: hash of how the flat vector is cut in buckets; both ends must agree
    ``bucket`` int     index of the bucket
    ``dtype``  str     ``f4``: float32, ``f8``: float64 (a further name, as ``bf16``, is a further row of ``_DTYPES``)
    ``stamp``  array   [incarnation, counter], two ints ≥ 0: newer is greater, incarnation first
    ``n``      map     the algorithm's small numbers by name; names and types are fixed per graph
    ========== ======= ==================================================================================

Whatever arrives is a stranger's until it is checked. :meth:`Codec.decode` answers anything that is not a well-formed
message of this run with :class:`~rfast_zmq.errors.Refused` and one of :data:`REASONS`, in the order of the checks:
cheap ones first, lengths before a byte is unpacked, the payload last.
"""

from __future__ import annotations

import math
import re
import reprlib
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from rfast_zmq.core.events import Edge, Graph, Message, Number, Stamp
from rfast_zmq.core.packing import PACKINGS, packed_bytes, unpack
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.settings import BUCKET_BYTES
from rfast_zmq.wire.memory import bytes_of, tensor_of

VERSION = 1

REASONS = (
    "frames",  # not two frames of bytes
    "size",  # header frame too long; payload of another length than announced, or than the bucket's
    "malformed",  # not the msgpack described above: wrong framing, limits, keys or types
    "version",  # of another version of this format
    "run",  # of another run
    "edge",  # on an edge that does not end here: unknown sender, receiver or graph
    "layout",  # from a node that cuts the vector in another way
    "bucket",  # no such bucket
    "dtype",  # from a node that computes in another dtype
    "stamp",  # not two ints from 0 to 2⁶²
    "numbers",  # other names or types than the algorithm declares; not finite; out of range
    "payload",  # NaN or infinity in it
)
"""Why a message is refused, in the order of the checks."""

MAX_HEADER_BYTES = 4096
MAX_INT = 2**62
MAX_LIST_ITEMS = 1024
MAX_LIST_INT = 2**31 - 1
MAX_STR_BYTES = 128
MAX_MAP_ITEMS = 64

_ARRAY_OF_2 = b"\x92"
_BIN_32 = struct.Struct(">BI")
_BIN_32_CODE = 0xC6
_KEYS: dict[str, type] = {
    "v": int,
    "run": str,
    "src": int,
    "dst": int,
    "graph": str,
    "layout": str,
    "bucket": int,
    "dtype": str,
    "stamp": list,
    "n": dict,
}
_BYTES = np.dtype(np.uint8)
_NUMBER_TYPES = (bool, int, float, list)
_DTYPES: dict[torch.dtype, tuple[str, np.dtype[Any]]] = {
    torch.float32: ("f4", np.dtype("<f4")),
    torch.float64: ("f8", np.dtype("<f8")),
}


class Codec:
    """Messages of one run to frames and back, at one node.

    Not for use by two threads at once.

    Args:
        run: id of the run, at most 128 bytes of UTF-8. A message of another run is refused.
        layout: hash of the layout, 16 hex digits.
        sizes: coordinates in each bucket, each ≥ 1.
        dtype: of every payload: ``torch.float32`` or ``torch.float64``.
        packings: per bucket, how its payload travels (:mod:`rfast_zmq.core.packing`); None: all as they are.
        in_edges: the edges that end here; a message on any other is refused.
        numbers: per graph, the small numbers that its messages carry: name to ``bool``, ``int``, ``float`` or ``list``
            (:meth:`~rfast_zmq.core.interface.Algorithm.numbers`). Every graph of ``in_edges`` must be there.

    Raises:
        UsageError: a dtype the wire does not carry, a run id too long, or a big-endian machine.
        ValueError: sizes, layout or numbers that no message could have.
    """

    def __init__(
        self,
        *,
        run: str,
        layout: str,
        sizes: Sequence[int],
        dtype: torch.dtype,
        in_edges: Iterable[Edge],
        numbers: Mapping[Graph, Mapping[str, type]],
        packings: Sequence[str] | None = None,
    ) -> None:
        if sys.byteorder != "little":
            raise UsageError("this machine is big-endian; payloads travel in little-endian memory, uncopied")
        if dtype not in _DTYPES:
            carried = ", ".join(str(known) for known in _DTYPES)
            raise UsageError(f"dtype {dtype} does not travel; parameters must be of one of: {carried}")
        if len(run.encode()) > MAX_STR_BYTES:
            raise UsageError(f"run id {reprlib.repr(run)}: must have at most {MAX_STR_BYTES} bytes")
        if not re.fullmatch(r"[0-9a-f]{16}", layout):
            raise ValueError(f"layout {layout!r} is not 16 hex digits")
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes {reprlib.repr(sizes)}: need a bucket, and a coordinate in each")
        self._run = run
        self._layout = layout
        self._sizes = tuple(sizes)
        self._dtype = dtype
        dtype_name, self._dtype_numpy = _DTYPES[dtype]
        self._packings = tuple(PACKINGS[0] for _ in sizes) if packings is None else tuple(packings)
        self._packed = tuple(packing != PACKINGS[0] for packing in self._packings)
        if len(self._packings) != len(sizes) or (any(self._packed) and dtype != torch.float32):
            raise ValueError(f"packings {reprlib.repr(packings)} for {len(sizes)} buckets of {dtype}")
        self._dtype_names = tuple(
            p if packs else dtype_name for p, packs in zip(self._packings, self._packed, strict=True)
        )
        self._bucket_bytes = tuple(
            packed_bytes(size, packing) if packs else size * self._dtype_numpy.itemsize
            for size, packing, packs in zip(sizes, self._packings, self._packed, strict=True)
        )
        self._in_edges = {tuple(edge): edge for edge in in_edges}
        self._numbers = {graph: dict(declared) for graph, declared in numbers.items()}
        undeclared = {edge.graph for edge in self._in_edges.values()} - self._numbers.keys()
        if undeclared:
            raise ValueError(f"no numbers are declared for graph {undeclared}, of which an edge ends here")
        for graph, declared in self._numbers.items():
            _check_declaration(graph, declared)
        self._packer = msgpack.Packer()

    @property
    def max_frame_bytes(self) -> int:
        """The longest frame that is let in, in bytes: what the socket's MAXMSGSIZE should be. At least a bucket of any
        model, so that a peer that trains another one is told apart (``layout``) from one that is merely broken.
        """
        return max(MAX_HEADER_BYTES, BUCKET_BYTES, *self._bucket_bytes)

    @property
    def max_payload_bytes(self) -> int:
        """The longest payload of this run, in bytes."""
        return max(self._bucket_bytes)

    # -------------------------------------------------------------------------------------------- writing

    def encode(self, message: Message) -> list[bytes | memoryview]:
        """The two frames of a message.

        Args:
            message: its payload 1-D, of this codec's dtype, with as many coordinates as its bucket. Whether the values
                are finite is not looked at: who receives them does.

        Returns:
            ``[header, payload]``. The payload is the tensor's own memory where the tensor is contiguous and on the CPU,
            and keeps it alive; so the tensor must not be written to until the frames are sent.

        Raises:
            ValueError: the message is none of this run's (a fault of the caller, not of a peer).
        """
        payload, numbers = message.payload, self._numbers_to_send(message)
        if not 0 <= message.bucket < len(self._sizes):
            raise ValueError(f"bucket {message.bucket} of {len(self._sizes)}")
        if (message.packed is not None) != self._packed[message.bucket]:
            raise ValueError(f"bucket {message.bucket} travels as {self._packings[message.bucket]}")
        if payload.dtype != self._dtype or payload.shape != (self._sizes[message.bucket],):
            raise ValueError(
                f"bucket {message.bucket} has {self._sizes[message.bucket]} coordinates of {self._dtype}; "
                f"the payload is {payload.dtype} of shape {tuple(payload.shape)}"
            )
        fields = {
            "v": VERSION,
            "run": self._run,
            "src": message.edge.src,
            "dst": message.edge.dst,
            "graph": message.edge.graph,
            "layout": self._layout,
            "bucket": message.bucket,
            "dtype": self._dtype_names[message.bucket],
            "stamp": message.stamp,
            "n": numbers,
        }
        length = self._bucket_bytes[message.bucket]
        header: bytes = _ARRAY_OF_2 + self._packer.pack(fields) + _BIN_32.pack(_BIN_32_CODE, length)
        if len(header) > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {len(header)} bytes; every peer refuses more than {MAX_HEADER_BYTES}")
        return [header, bytes_of(payload if message.packed is None else message.packed)]

    def _numbers_to_send(self, message: Message) -> Mapping[str, Number]:
        """The message's numbers, in the types that are declared (an int is a float where a float is declared)."""
        declared, numbers = self._numbers[message.edge.graph], message.numbers
        if {name: type(value) for name, value in numbers.items()} == declared:
            return numbers
        sent = {
            name: float(value) if declared.get(name) is float and type(value) is int else value
            for name, value in numbers.items()
        }
        if {name: type(value) for name, value in sent.items()} != declared:
            raise ValueError(f"numbers {numbers!r} of graph {message.edge.graph}; declared: {declared!r}")
        return sent

    # -------------------------------------------------------------------------------------------- reading

    def decode(self, frames: Sequence[bytes | memoryview]) -> Message:
        """The message that two frames hold.

        Args:
            frames: what a peer sent: any bytes in any number of frames.

        Returns:
            A message whose payload is the memory of the second frame (see :func:`~rfast_zmq.wire.memory.tensor_of`;
            where it travels packed, ``packed`` is), all finite.

        Raises:
            Refused: the frames are not a well-formed message of this run; the reason is one of :data:`REASONS`.
                Nothing else is raised, whatever the frames hold.
        """
        header, payload = _two_frames(frames)
        self._check_lengths(header, payload)
        fields = _unpack(header)
        self._check_origin(fields)
        edge = self._in_edges.get((fields["graph"], fields["src"], fields["dst"]))
        if edge is None:
            raise Refused("edge", f"{_show(fields['graph'])} {fields['src']} → {fields['dst']} does not end here")
        bucket = self._bucket(fields, payload)
        stamp = _stamp(fields["stamp"])
        _check_numbers(self._numbers[edge.graph], fields["n"])
        packed = tensor_of(payload, _BYTES) if self._packed[bucket] else None
        if packed is None:
            tensor = tensor_of(payload, self._dtype_numpy)
        else:
            tensor = unpack(packed, self._sizes[bucket], self._packings[bucket])
        if not _is_finite(tensor):
            raise Refused("payload", f"bucket {bucket} of {edge.graph} from rank {edge.src} is not finite")
        return Message(edge, bucket, stamp, tensor, fields["n"], packed)

    def _check_lengths(self, header: memoryview, payload: memoryview) -> None:
        if not 1 + _BIN_32.size < len(header) <= MAX_HEADER_BYTES:
            raise Refused("size", f"a header frame of {len(header)} bytes")
        if len(payload) > self.max_frame_bytes:
            raise Refused("size", f"a payload frame of {len(payload)} bytes")
        code, length = _BIN_32.unpack_from(header, len(header) - _BIN_32.size)
        if header[:1] != _ARRAY_OF_2 or code != _BIN_32_CODE:
            raise Refused("malformed", "the header frame is not the start of [map, bin 32]")
        if length != len(payload):
            raise Refused("size", f"{length} bytes announced, {len(payload)} came")

    def _check_origin(self, fields: Mapping[str, Any]) -> None:
        if fields["v"] != VERSION:
            raise Refused("version", f"{fields['v']}, not {VERSION}")
        for key, kind in _KEYS.items():
            if type(fields.get(key)) is not kind:
                raise Refused("malformed", f"{key} is {_show(fields.get(key))}")
        if len(fields) != len(_KEYS):
            raise Refused("malformed", f"unknown keys {_show(sorted(fields.keys() - _KEYS.keys()))}")
        if fields["run"] != self._run:
            raise Refused("run", f"{_show(fields['run'])}, not {self._run!r}")

    def _bucket(self, fields: Mapping[str, Any], payload: memoryview) -> int:
        bucket: int = fields["bucket"]
        if fields["layout"] != self._layout:
            raise Refused("layout", f"{_show(fields['layout'])}, not {self._layout}")
        if not 0 <= bucket < len(self._sizes):
            raise Refused("bucket", f"{bucket} of {len(self._sizes)}")
        if fields["dtype"] != self._dtype_names[bucket]:
            raise Refused("dtype", f"{_show(fields['dtype'])}, not {self._dtype_names[bucket]}")
        if len(payload) != self._bucket_bytes[bucket]:
            raise Refused("size", f"{len(payload)} bytes; bucket {bucket} has {self._bucket_bytes[bucket]}")
        return bucket


# ---------------------------------------------------------------------------------------------------- checks


def _two_frames(frames: Sequence[bytes | memoryview]) -> tuple[memoryview, memoryview]:
    if len(frames) != 2:
        raise Refused("frames", f"{len(frames)}, not 2")
    try:
        return memoryview(frames[0]).cast("B"), memoryview(frames[1]).cast("B")
    except (TypeError, ValueError) as error:
        raise Refused("frames", str(error)) from error


def _unpack(header: memoryview) -> dict[str, Any]:
    """The map of a header frame, which may hold anything yet; only its ``v`` is known to be an int."""
    try:
        fields = msgpack.unpackb(
            header[1 : -_BIN_32.size],
            object_pairs_hook=_distinct,
            strict_map_key=True,
            max_str_len=MAX_STR_BYTES,
            max_array_len=MAX_LIST_ITEMS,
            max_map_len=MAX_MAP_ITEMS,
            max_bin_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # which one hostile bytes raise is the library's own business
        raise Refused("malformed", f"{type(error).__name__} {error}") from error
    if type(fields) is not dict or type(fields.get("v")) is not int:
        raise Refused("malformed", f"not a header: {_show(fields)}")
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs) or any(type(key) is not str for key in made):
        raise ValueError("a key that is repeated, or is no string")
    return made


def _stamp(found: list[Any]) -> Stamp:
    if len(found) != 2 or not all(type(part) is int and 0 <= part <= MAX_INT for part in found):
        raise Refused("stamp", _show(found))
    return Stamp(*found)


def _check_numbers(declared: Mapping[str, type], numbers: Mapping[str, Any]) -> None:
    if numbers.keys() != declared.keys():
        raise Refused("numbers", f"{_show(sorted(numbers))}, not {_show(sorted(declared))}")
    for name, kind in declared.items():
        value = numbers[name]
        if type(value) is not kind or not _in_range(value):
            raise Refused("numbers", f"{name} is {_show(value)}, declared {kind.__name__}")


def _in_range(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return len(value) <= MAX_LIST_ITEMS and all(type(item) is int and 0 <= item <= MAX_LIST_INT for item in value)
    return isinstance(value, int) and -1 <= value <= MAX_INT


def _is_finite(tensor_P: Tensor) -> bool:
    """Exact. A sum of finite numbers may overflow, but no NaN or infinity is lost in a sum: so only a sum that is not
    finite needs the second look. One pass without a temporary, 20 to 60 times cheaper than ``torch.isfinite``.
    """
    return math.isfinite(tensor_P.sum().item()) or bool(np.isfinite(tensor_P.numpy()).all())


def _check_declaration(graph: Graph, declared: Mapping[str, type]) -> None:
    for name, kind in declared.items():
        if kind not in _NUMBER_TYPES or len(name.encode()) > MAX_STR_BYTES:
            raise ValueError(f"graph {graph} declares a number {name!r} of {kind!r}")
    if len(declared) > MAX_MAP_ITEMS:
        raise ValueError(f"graph {graph} declares {len(declared)} numbers; at most {MAX_MAP_ITEMS} travel")


def _show(value: object) -> str:
    """For a log: short, whatever a peer sent."""
    return reprlib.repr(value)

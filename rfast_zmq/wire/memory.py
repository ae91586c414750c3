"""A tensor seen as bytes, and bytes seen as a tensor, without a copy: the one place where the two meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def bytes_of(tensor_P: Tensor) -> memoryview:
    """The memory of a tensor, as bytes.

    Args:
        tensor_P: 1-D, of a dtype that numpy has, on any device. Must not be written to while the view lives.

    Returns:
        P × itemsize bytes. They are the tensor's own memory where it is contiguous and on the CPU, else a copy's;
        the view keeps that memory alive.
    """
    array: Any = tensor_P.detach().cpu().contiguous().numpy()
    return memoryview(array).cast("B")


def tensor_of(buffer: memoryview, dtype: np.dtype[Any]) -> Tensor:
    """Bytes, as a tensor.

    Args:
        buffer: contiguous; its length is a positive multiple of the item size. It may be read-only.
        dtype: what the bytes are, in this machine's byte order.

    Returns:
        1-D CPU tensor in the buffer's own memory, which it keeps alive. Never write to it: PyTorch knows no
        read-only tensor. Only bytes that begin at an odd address (ZeroMQ hands over small frames so) are copied,
        since kernels may take aligned addresses for granted.
    """
    array = np.frombuffer(buffer, dtype)
    if not array.flags.aligned:
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_TakenForWritable(array))
    return torch.from_numpy(array)


class _TakenForWritable:
    """A read-only array that says of itself it could be written to.

    PyTorch warns whenever a read-only array becomes a tensor. Here nobody writes to a received payload, by the
    contract of :class:`~rfast_zmq.core.events.Message`, so there is nothing to warn of.
    """

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = array.__array_interface__
        self.owner = array
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}

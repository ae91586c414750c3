"""One message to frames and back: knows limits, knows no socket.

The format is described in :mod:`~rfast_zmq.wire.codec`.
"""

from rfast_zmq.wire.codec import MAX_HEADER_BYTES, REASONS, VERSION, Codec

__all__ = ["MAX_HEADER_BYTES", "REASONS", "VERSION", "Codec"]

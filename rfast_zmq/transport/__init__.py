"""PUSH/PULL links over ZeroMQ: one PULL a graph, one PUSH an edge; bounded memory whatever a peer does."""

from rfast_zmq.transport.addresses import Addresses, check_exposure
from rfast_zmq.transport.links import RECEIVED_MOST, REFILLED, Inlet, Outlet, shareable

__all__ = ["RECEIVED_MOST", "REFILLED", "Addresses", "Inlet", "Outlet", "check_exposure", "shareable"]

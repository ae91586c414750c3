"""A real node: the core on an asyncio loop, over ZeroMQ."""

from rfast_zmq.node.runtime import Node
from rfast_zmq.node.steps import Steps
from rfast_zmq.node.watcher import Watcher

__all__ = ["Node", "Steps", "Watcher"]

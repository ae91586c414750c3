"""Starting nodes: one process each on this machine, or one node on this host."""

from rfast_zmq.launch.loopback import run
from rfast_zmq.launch.outcome import Observer, Run
from rfast_zmq.launch.single import run_node

__all__ = ["Observer", "Run", "run", "run_node"]

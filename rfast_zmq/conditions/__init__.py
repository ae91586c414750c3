"""The conditions of a run as seeded descriptions: how fast nodes compute, which of them stand still, and what links do
to messages.

The simulator and the node draw from the same descriptions, so that what was simulated can be run, and every algorithm
compared meets the same draws.
"""

from rfast_zmq.conditions.faults import Faults, LinkFaults
from rfast_zmq.conditions.halts import Halt
from rfast_zmq.conditions.rates import bytes_per_s
from rfast_zmq.conditions.speeds import Speeds

__all__ = ["Faults", "Halt", "LinkFaults", "Speeds", "bytes_per_s"]

"""The simulator: the core in virtual time, and the replay of schedules."""

from rfast_zmq.conditions import Halt
from rfast_zmq.simulate.notes import Simulation
from rfast_zmq.simulate.simulator import Simulator

__all__ = ["Halt", "Simulation", "Simulator"]

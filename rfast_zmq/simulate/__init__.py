"""The simulator: the core in virtual time, and the replay of schedules."""

from rfast_zmq.simulate.simulator import Halt, Simulation, Simulator

__all__ = ["Halt", "Simulation", "Simulator"]

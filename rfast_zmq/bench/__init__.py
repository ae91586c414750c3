"""The node beside what it replaces: plain PyTorch, bare ZeroMQ, gloo; and what one stopped peer costs the others.

Each benchmark takes both sides in one run, in turn, and gives :class:`~rfast_zmq.bench.figures.Figures`.
"""

from rfast_zmq.bench.figures import Figure, Figures

__all__ = ["Figure", "Figures"]

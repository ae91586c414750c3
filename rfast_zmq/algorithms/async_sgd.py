"""``async-sgd``: asynchronous SGD. The root takes a step along every gradient as it comes, whatever model it is of::

    x^{k+1} = x^k − γ b/B ∇f_i(x^{k−δ}; ζ)

with b the gradient's samples: B samples, whoever computed them, move the model by about what a synchronous step of B
would. Nobody waits, but for the answer to its own gradient. A fast node counts for more, so on uneven data it ends at
the optimum weighted by speeds, not by nodes; and a slow node's steps are of old models.

Every gradient goes up the push tree by itself (``rfast_zmq/core/served.py``). The root computes, too.

Sources: Agarwal and Duchi, "Distributed delayed stochastic optimization" (2011); Lian et al., "Asynchronous parallel
stochastic gradient for nonconvex optimization" (arXiv 1506.08272), Algorithm 1.
Departures: node weights scale the gradients; of running averages (BatchNorm) the root moves b/B of the way to what
came.
"""

from __future__ import annotations

from typing import ClassVar

from rfast_zmq.core.served import Answered, Gradient


class AsyncSgd(Answered):
    """One node of asynchronous SGD. See the module."""

    name: ClassVar[str] = "async-sgd"

    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        self._update(gradient, samples)

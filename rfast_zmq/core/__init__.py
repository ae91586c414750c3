"""The rules. What the core computes, by which names, what never breaks, and how it is driven.

The problem
-----------
n nodes minimise F(x) = (1/n) Σᵢ fᵢ(x), each with its own data, speed and links, and nobody waits for anybody. Two
directed graphs over them, which need not be the same nor strongly connected, but must share a root:

- **W, the pull graph**, carries models. Its rows sum to 1; from its roots every node can be reached.
- **A, the push graph**, carries gradient mass. Its columns sum to 1; every node can reach its roots.

Algorithm 1 (R-FAST, arXiv 2307.11617)
--------------------------------------
All start at x⁰, with z_i = g_i = ∇f_i(x⁰), all sums 0. One step of node i, whenever it likes, with what it has heard::

    S1  v_i  ← x_i − γ z_i                                                local descent
    S2  x_i⁺ ← w_ii v_i + Σ_{j∈In_W} w_ij v_j                             consensus pull
    S3  h    ← z_i + Σ_{j∈In_A} (ρ_ij − ρ̃_ij) + ∇f_i(x_i⁺; ζ⁺) − g_i      robust gradient tracking
        z_i  ← a_ii h;   ρ_ji ← ρ_ji + a_ji h for j ∈ Out_A;   g_i ← ∇f_i(x_i⁺; ζ⁺)
    S4  send v_i along W and ρ_ji along A, stamped
    S5  ρ̃_ij ← the ρ_ij that S3 used

v_j and ρ_ij are the newest-stamped values heard. A running sum is cumulative, so any later packet makes good every
earlier one that was lost: that is the whole device against packet loss.

Symbols and names
-----------------
====================  ================================  ==============================================================
symbol                name                              where
====================  ================================  ==============================================================
x, z, g               ``x``, ``z``, ``g``               ``_Bucket`` of :mod:`rfast_zmq.algorithms.rfast`
v_i;  v_j heard       ``v``; ``heard_v``                the same; v_i is what goes along W
ρ_ji                  ``rho``                           the same; one running sum per out-edge of A
ρ_ij heard;  ρ̃_ij     ``heard_rho``; ``used_rho``       the same; newest heard, and what S3 used last
w_ii, w_ij            ``w_self``, ``w``                 the same; from :class:`~rfast_zmq.topology.Topology`
a_ii, a_ji            ``a_self``, ``a``                 the same
γ                     ``lr`` · ``lr_schedule(rounds)``  :class:`~rfast_zmq.core.interface.NodeConfig`
S1, S2;  S3, S5       ``pull``; ``track``               methods of ``_Bucket``; by ``ModelWanted``, ``GradientReady``
S4                    ``_payload``                      run by ``LinkReady``: the message is made when the link takes it
stamp                 ``Stamp(incarnation, counter)``   :mod:`rfast_zmq.core.events`
B, μ                  ``global_batch``, ``samples``     samples of a round; of one gradient
record (g, w, wV, c)  ``Record``                        :mod:`rfast_zmq.algorithms.tree_records`: w·gradient,
                                                        weight, weight · version, samples; ``Child``: a child's
S                     ``TreeBucket.total``              the same: own record + the children's, recomputed every time
P                     ``rounds``                        progress in rounds of B samples; of x, per bucket
f, τ, L               ``f``, ``tau``, ``lead``          :class:`~rfast_zmq.core.descent.Descent`, at the root only
θ                     ``Descent.plain``                 the plain iterate, which is evaluated and saved
K                     ``ASIDE_ROUNDS``                  rounds without a move after which a child is set aside
C, τ_idle             ``pace_s``, ``resend_s``          :class:`~rfast_zmq.core.interface.Algorithm`
tree of a bucket      ``pull_tree``, ``push_tree``      of :class:`~rfast_zmq.core.skeleton.Skeleton`: they take turns
cycle                 ``cycle_s``                       :class:`~rfast_zmq.core.lines.LineMeter`: seconds in which a
                                                        node's line carries a model along all its edges
answer, answers       ``TreeBucket.answer``, …          in phase: when a leaf reports, in C after a model came; P of
                                                        the models that a report answers
====================  ================================  ==============================================================

Invariants
----------
**I1, local identity**, exact at every node and every instant: z_i = g_i + Σ_{In_A} ρ̃_ij − Σ_{Out_A} ρ_ji. Summed over
the network: Σ z + Σ_edges (ρ − ρ̃) = Σ g, under any loss, delay, reordering or duplication. It holds in a run that
diverges too, so it never stands in for a test of convergence.
**I2** Rows of W and columns of A sum to 1, and the two graphs share a root.
**I3** Accepted stamps on an edge (and bucket) strictly increase; a restarted node takes a higher incarnation, so its
first packets are newer than all it sent before.
**I4** A duplicate or older packet leaves the state bit-identical, and nothing is relayed for it.
**I5** One slot per edge, bucket and direction: memory does not grow with a slow or dead peer.

The determinism contract
------------------------
A node is a state machine: ``handle(event) -> actions``. It reads no clock (every event carries ``now``), draws no
random number, does no I/O, iterates over nothing unordered, and raises on nothing that a peer sent and the codec let
through. The same events give the same bits, in any process. A tensor that was handed over, in or out, is never written
to again: the core makes new ones, so a driver may keep, share or send them without a copy. A vector is cut in buckets
of about 1 MB; R-FAST is elementwise, so each bucket is an instance of its own, and a lost message costs only its
coordinates.

What ``rfast-tree``, the default, changes, and why
--------------------------------------------------
With every self-weight but the root's at 0, Algorithm 1 on a pair of spanning trees becomes: each node tells its parent
the sum of the newest gradients of its subtree, the root descends along the total, the model flows down. ρ is then a
subtree's sum and not a growing total, and a child that dies or joins leaves or enters it exactly. Whatever rides in
that sum arrives at the root as the exact mean over nodes, proof against loss: weights, versions, BatchNorm's averages.
(The figures were measured in virtual time: 8 nodes, an MLP on MNIST, NAdam, unless something else is said.)

1. **Trees inside any graph**, breadth-first from the lowest common root. Where many roots descend at their own speeds a
   step has no well-defined size (.55 to .73 of the formula's), and relaying on cycles destroys it (.07 on a ring). With
   the pair of trees a ring converges at rates where Algorithm 1 as published diverges.
2. **Relay at network speed**: a newer model or record is taken up and passed on at once, never on a dropped packet. The
   largest stable step on quadratics no longer falls with depth: .57 for 7, 15, 31 and 63 nodes, against .28 to .10.
3. **Step by progress**: asked for its model, the root steps by f = (samples newly counted)/B rounds, at most 1. So lr,
   momentum, decay and schedules mean what they mean on one machine with batch B, and a straggling root costs nothing
   (time 51–55 wherever the straggler sits; 305 with a root that steps at its own pace).
4. **Look ahead by the measured staleness**: each gradient tells the P of its model, so the root knows the mean
   staleness τ exactly, and hands out an iterate that leads the plain one by L = τ rounds (β + τ for Nesterov and
   NAdam), at most 4. As good as the best hand-tuned L in every case tried, with nothing to tune.
5. **Small reports**: after μ samples, well below a node's share of a round, while lr and momentum stay in units of B.
   Staleness is about one and a half reporting intervals. Even speeds, label split: b → 147, b/2 → 90, b/4 → 72 gradient
   times to the target; a slow node may take a smaller μ than others.
6. **Adam's second moment from the round's mean** (an average over about one round): fed with the mean of a few samples,
   its noise shrinks the steps, and 1.5 times as many samples are needed. With it, parity.
7. **Pace**: an edge speaks at most about eight times a round, as the root measures a round; in the turn that brings the
   news where it may, and never what its receiver would not use.
8. **No sample lost on a slow line**: a report is the mean of the gradients since the last one left, and an inner node
   takes the mean of what each child said since its own last report. Up to 1.7 times faster where lines are busy;
   nothing changes where they are free.
9. **Idle resend**: an edge with no news says its newest again. At 60 % loss: 107 → 22.
10. **In phase where lines are slow**: lines that speak each in their own rhythm make every hop wait. So C is at least
    what the busiest line takes for a model: measured at each node, up as a maximum, down with the model. Where that is
    more than an eighth of a round, the root gives all its links the same model (a wave), which is passed on at once; a
    leaf reports ``answer`` C after it came, an inner node when all its prompt children have answered it, or else 1.3 C
    after its last report; no edge speaks before .5 C since it last did. The root moves ``answer``, which comes down
    with the models, so that the last reports are there shortly before the next models leave. Computing never waits.

A child whose count has not moved for K = 10 rounds is set aside until it moves: otherwise its stale gradient drives τ
and L up, and the run ends at the wrong point or diverges. Where a topology gives several trees, the buckets take turns
between them.

How it is driven
----------------
Two drivers, the simulator and the node, do nothing but this; a gradient's walk goes through each line once:

- ``Started`` once; then ``Ready`` says that there is a model, ``ModelWanted`` asks, ``RunGradient`` answers with it,
  and ``GradientReady`` brings the gradient. One gradient at a time.
- ``Send(edge, bucket, paces)`` marks the edge's :class:`~rfast_zmq.core.slots.Slot`: news. When the slot is due and the
  link is free, ``LinkReady`` asks, and ``Transmit`` answers with the message, made from the state of that moment (or
  with nothing). Codec, wire, codec; then ``Received`` at the other end.
- ``StopWanted`` at the root, or enough samples, begin the end; ``Stopping``: compute no more; then ``Tick`` now and
  then, and ``PeerLeft`` when a peer closes its connection; ``Leave``: go. See :mod:`rfast_zmq.core.control`.

The files: :mod:`~rfast_zmq.core.events` the words, :mod:`~rfast_zmq.core.interface` what an algorithm is,
:mod:`~rfast_zmq.core.skeleton` stamps, census and closing for all of them, :mod:`~rfast_zmq.core.slots` latest wins,
:mod:`~rfast_zmq.core.lines` how busy a node's line is, :mod:`~rfast_zmq.core.descent` the root's step,
:mod:`~rfast_zmq.core.control` the census and the end.
"""

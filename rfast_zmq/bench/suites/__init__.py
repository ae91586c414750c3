"""``rfast bench run`` and ``rfast bench report``: the algorithms side by side on the same ground.

``ground`` says what a run is, ``block`` what a suite is made of; ``paper``, ``slow_links`` and ``others`` are the
suites, ``catalogue`` their names. ``tuning`` finds each contestant's best lr, ``runner`` runs what is not there yet,
``store`` keeps it, ``standings`` says what it means, ``report`` and ``pictures`` show it.
"""

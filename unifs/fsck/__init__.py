"""Fsck: is what the state directory says of itself consistent, and how is it made so again.

One list of checks (``checks``), each a function that names what is wrong and knows how it is
mended. ``offline`` runs them over a state directory that no daemon has and may mend; ``online``
runs those that hold at every commit beside a daemon, and only looks. Called by the command line and
by ``unifs.answers``.
"""

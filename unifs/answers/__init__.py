"""What the running daemon answers to control operations: files, mounts, journal, explanations.

The composition root makes these objects; operations see them through the protocols of
``control.daemon_protocol``. They look at the vfs and the storage and change them only through
``vfs.paths``, like a user's system calls.
"""

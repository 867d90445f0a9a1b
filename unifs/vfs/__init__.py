"""POSIX semantics over the tree; knows no FUSE and no backend."""

"""unifs: one mounted tree for everything addressed by content or kept in an object store."""

__version__ = "0.1.0"

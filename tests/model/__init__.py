"""File operations against a plain dictionary model: results, errno, bytes, sizes, links."""

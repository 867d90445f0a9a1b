"""The embedded node: segments, block index, pins, MFS root, collection."""

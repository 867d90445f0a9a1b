"""CIDs, dag-pb, UnixFS, CAR and the nodes that keep blocks."""

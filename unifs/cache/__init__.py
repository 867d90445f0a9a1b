"""The read side: tiers of verified or checksummed extents of remote objects."""

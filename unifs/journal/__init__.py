"""The write side: overlays, contents, the ordered record of changes, recovery, writeback."""

"""Any S3 service as a directory tree; ``mount.S3Mount`` is the door."""

"""S3: any service that speaks it as a directory tree of buckets and keys."""

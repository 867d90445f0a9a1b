"""UnixFS files and directories as DAGs, in and out."""

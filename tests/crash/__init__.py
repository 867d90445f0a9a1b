"""Proof that nothing acknowledged is lost: recorded workloads, killed or cut off, then checked."""

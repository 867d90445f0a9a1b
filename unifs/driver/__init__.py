"""pyfuse3 to vfs and back: request loop, guard, notifications."""

"""Living on a machine: systemd units, and what mount(8) calls."""

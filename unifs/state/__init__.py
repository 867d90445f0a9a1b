"""The state directory and its database: the ground that tree and journal stand on."""

"""The parts of scripts/bench: the sides, the work that is timed, the gates, the report."""

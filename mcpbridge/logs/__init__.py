"""The log of a bridge that `twistd` or `mcpbridge` runs: its levels, and its format in JSON."""

"""Real clients of every revision in front of backends of every era, all through one bridge."""

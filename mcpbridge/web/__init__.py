"""The HTTP side: sites and their limits, the routes, and event streams."""

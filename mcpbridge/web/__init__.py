"""HTTP: sites and their limits, connections, routes and responses."""

"""Backend processes of one server: the pool, permits, and the session of each."""

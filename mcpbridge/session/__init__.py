"""Sessions of clients: the negotiation of the era, Streamable HTTP, and the default event store."""

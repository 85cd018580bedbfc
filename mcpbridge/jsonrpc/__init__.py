"""JSON-RPC messages as bytes: framing, envelopes, members.  No I/O."""

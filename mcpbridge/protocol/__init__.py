"""The sans-IO part: bytes and messages, without a reactor."""

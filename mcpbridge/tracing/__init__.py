"""Spans of requests, sessions and starts of processes, by OpenTelemetry."""

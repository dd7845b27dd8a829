"""Logs, Prometheus metrics and OpenTelemetry traces of a server."""

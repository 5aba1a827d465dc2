"""Metrics for Prometheus and OpenTelemetry; each needs an extra of its own."""

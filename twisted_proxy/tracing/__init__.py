"""What a tracing system is told of requests: OpenTelemetry, where the extra ``otel`` is installed."""

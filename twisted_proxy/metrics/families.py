"""
The metrics, by name.

They follow Prometheus's conventions (https://prometheus.io/docs/practices/naming/): base units, counters end in
``_total``. docs/metrics.md is about them all.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Family:
    """One metric, under all of its label values."""

    name: str
    """As it is exposed; of a histogram, without ``_bucket``, ``_sum`` and ``_count``."""
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    labels: tuple[str, ...]
    meaning: str


OF_REQUESTS: Final = ("provider", "model", "endpoint")

F = Family
P = "claude_proxy_"

# Requests

IN_FLIGHT = F(P + "requests_in_flight", "gauge", (), "Requests whose headers were in and whose last byte is not out.")
OLDEST = F(P + "oldest_request_age_seconds", "gauge", (), "Age of the oldest request in flight; 0 if there is none.")
REQUESTS = F(
    P + "requests_total",
    "counter",
    (*OF_REQUESTS, "status", "verdict"),
    "Requests that are over, by the status that the client was sent and the verdict of the access log.",
)
TTFT = F(
    P + "time_to_first_byte_seconds",
    "histogram",
    OF_REQUESTS,
    "From the request's headers to the first byte of the answer's body, of answers of an upstream with status 2xx.",
)
DURATION = F(
    P + "request_duration_seconds",
    "histogram",
    OF_REQUESTS,
    "From the request's headers to the answer's last byte, or to whatever ended it.",
)
REQUEST_BYTES = F(P + "request_body_bytes_total", "counter", OF_REQUESTS, "Bytes of bodies that clients sent.")
RESPONSE_BYTES = F(
    P + "response_body_bytes_total", "counter", OF_REQUESTS, "Bytes of bodies that were written to clients."
)

# The front door

CLIENT_CONNECTIONS = F(P + "client_connections", "gauge", ("site",), "Open connections of clients.")
CLIENT_CONNECTIONS_MAX = F(
    P + "client_connections_max",
    "gauge",
    ("site",),
    "For how many of them there is room: MAX_CONNECTIONS, or what the descriptors allow.",
)
TURNED_AWAY = F(
    P + "client_connections_turned_away_total", "counter", ("site",), "Connections for which there was no room."
)
REFUSALS = F(
    P + "refusals_total",
    "counter",
    ("site", "status"),
    "Requests that a limit or the rules of HTTP kept out, by the status of Anthropic's API.",
)
BODIES = F(P + "request_bodies_bytes", "gauge", ("site",), "Bytes of request bodies in memory.")
BODIES_MAX = F(P + "request_bodies_max_bytes", "gauge", ("site",), "MAX_BODIES_BYTES.")
CREDENTIALS = F(
    P + "limited_credentials", "gauge", ("site",), "Credentials whose requests are counted towards their limits."
)

# Upstreams

UPSTREAM_ERRORS = F(
    P + "upstream_errors_total",
    "counter",
    ("provider", "kind"),
    "Requests that an upstream did not answer, or not to the end, by the kind of the forward_error log.",
)
UPSTREAM_RETRIES = F(
    P + "upstream_retries_total", "counter", ("provider",), "Connection attempts that were made again."
)
UPSTREAM_CONNECTIONS = F(
    P + "upstream_connections", "gauge", ("provider", "state"), "Open connections to an upstream: in_use, or idle."
)

# What the recorder reads in answers

TOKENS = F(
    P + "tokens_total",
    "counter",
    ("provider", "model", "kind"),
    "Tokens of recorded answers: input (without the cache), output, cache_read, cache_write_5m, cache_write_1h.",
)
COST = F(
    P + "cost_usd_total", "counter", ("provider", "model"), "US dollars that recorded answers cost, by list price."
)
UNPRICED = F(
    P + "unpriced_answers_total",
    "counter",
    ("provider", "model"),
    "Recorded answers with tokens whose price is not known: the cost is without them.",
)
EVENTS = F(
    P + "response_events_total",
    "counter",
    ("provider", "model"),
    "Server-sent events of answers that were recorded with their bodies, pings too.",
)

# Recording

RECORDING = F(P + "recording", "gauge", ("mode",), "1 for the mode that RECORD sets: full, metadata or off.")
RECORDING_UP = F(P + "recording_up", "gauge", (), "1 while what passes is kept and stored; 0 while that fails.")
RECORDED = F(P + "recorded_exchanges_total", "counter", (), "Exchanges that are in the store with their end.")
INCOMPLETE = F(P + "recorded_incomplete_total", "counter", (), "Exchanges in the store of which something is missing.")
INTERRUPTED = F(
    P + "recorded_interrupted_total", "counter", (), "Exchanges in the store whose process ended before they did."
)
LOST_BODIES = F(P + "lost_bodies_total", "counter", (), "Exchanges of which bytes, or notes, were not kept.")
LOST_EXCHANGES = F(P + "lost_exchanges_total", "counter", (), "Exchanges of which nothing was kept.")
JOURNAL_PENDING = F(P + "journal_pending_bytes", "gauge", (), "Bytes in memory that are not in the spool yet.")
SPOOL = F(P + "spool_bytes", "gauge", (), "Bytes of this process's part of the spool, as of the last write.")
SPOOL_MAX = F(P + "spool_max_bytes", "gauge", (), "SPOOL_MAX_BYTES.")
BEHIND = F(P + "recorder_behind_bytes", "gauge", (), "Bytes in the spool that are not in the store yet, at most.")
RECORDER_RESTARTS = F(P + "recorder_restarts_total", "counter", (), "How often the recorder's process died.")
STORE_WRITES = F(P + "store_write_seconds", "histogram", (), "Time that the store took for a batch that it has kept.")

# Tracing

SPANS = F(
    P + "spans_total",
    "counter",
    ("outcome",),
    "Spans: exported; failed, the collector did not take them; dropped, too many were waiting.",
)

# The process

DRAINING = F(P + "draining", "gauge", (), "1 from SIGTERM on.")
DRAIN_LEFT = F(P + "drain_remaining_seconds", "gauge", (), "Until what is in flight is cut; before a drain, all of it.")
LAG = F(P + "reactor_lag_seconds", "histogram", (), "By how much timed calls came late; looked at four times a second.")
BUILD = F(P + "build_info", "gauge", ("version", "python", "twisted"), "1, with the versions that run.")

# Workers, where there are any

WORKERS = F(P + "workers", "gauge", ("state",), "Processes below one supervisor: configured, and running.")
WORKER_RESTARTS = F(P + "worker_restarts_total", "counter", (), "How often a worker had to be started again.")

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))

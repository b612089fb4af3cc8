"""
What OpenTelemetry's standard variables say of tracing.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/. Those that are not here (sampler, service name, resource,
headers, certificates, time limit) are read by OpenTelemetry itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import attrs

QUEUE: Final = 2048
BATCH: Final = 64
"""Spans that are sent at once. The standard's 512 would take the interpreter from the reactor for long."""
DELAY: Final = 1000
"""Milliseconds that a span waits for others."""

INSTALL: Final = 'pip install "claude-proxy[otel]"'
_OVER_HTTP: Final = "http/protobuf"


@attrs.frozen(kw_only=True)
class TracingConfig:
    """
    Whether, and to where, spans are sent.

    :ivar endpoint: the collector's, without what may be a credential in it; ``None``: tracing is off.
    :ivar problems: what is set and cannot be done, in words.
    :ivar queue: spans that wait at most. :ivar batch: that are sent at once. :ivar delay: milliseconds that one waits.
    """

    endpoint: str | None = None
    problems: tuple[str, ...] = ()
    queue: int = QUEUE
    batch: int = BATCH
    delay: int = DELAY

    @classmethod
    def read(cls, environ: Mapping[str, str], installed: Callable[[], bool]) -> TracingConfig:
        """
        Tracing is on where an OTLP endpoint is set, and nothing says otherwise.

        :param installed: whether the extra ``otel`` is there; asked only then.
        """

        def get(name: str) -> str:
            # The standard takes what is empty for what is not set.
            return environ.get(name, "").strip()

        base, own = get("OTEL_EXPORTER_OTLP_ENDPOINT"), get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        exporters = {each.strip().lower() for each in (get("OTEL_TRACES_EXPORTER") or "otlp").split(",")}
        if not (base or own) or get("OTEL_SDK_DISABLED").lower() == "true" or exporters == {"none"}:
            return cls()
        name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
        endpoint = own or f"{base.removesuffix('/')}/v1/traces"
        protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or get("OTEL_EXPORTER_OTLP_PROTOCOL") or _OVER_HTTP
        problem = None
        if "otlp" not in exporters:
            problem = "OTEL_TRACES_EXPORTER names none that is here: set it to otlp"
        elif protocol != _OVER_HTTP:
            problem = (
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol[:32]!r}, and there is only {_OVER_HTTP}: set it to that, "
                f"and {name} to the collector's port for it (4318 as a rule)"
            )
        elif (shown := _shown(endpoint)) is None:
            problem = f"{name} is no URL of a host: it begins with http:// or https://"
        elif not installed():
            problem = f"{name} is set, and OpenTelemetry is not installed: {INSTALL}"
        else:
            return _with_numbers(cls(endpoint=shown), get)
        return cls(problems=(f"requests are not traced: {problem}",))


def _shown(endpoint: str) -> str | None:
    """An endpoint as a log may have it; ``None`` where it is none."""
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError:
        return None
    if url.scheme not in ("http", "https") or not host:
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{host}{'' if port is None else f':{port}'}{url.path}"


def _with_numbers(config: TracingConfig, get: Callable[[str], str]) -> TracingConfig:
    problems = []

    def number(name: str, default: int) -> int:
        text = get(name)
        if not text:
            return default
        if text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9:
            return int(text[:10])
        problems.append(f"{name} is no number above 0: {default} holds")
        return default

    queue = number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE)
    batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(BATCH, queue))
    if batch > queue:
        problems.append(f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE is larger than the queue: {queue} holds")
        batch = queue
    delay = number("OTEL_BSP_SCHEDULE_DELAY", DELAY)
    return attrs.evolve(config, queue=queue, batch=batch, delay=delay, problems=tuple(problems))

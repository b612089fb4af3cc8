"""Exchanges in the words of the API."""

from __future__ import annotations

from typing import Any

from ...record.aggregates import Group, Totals
from ...record.exchange import Exchange
from .calls import show_time

Json = dict[str, Any]


def usage(exchange: Exchange) -> Json:
    return {
        "inputTokens": exchange.input_tokens,
        "outputTokens": exchange.output_tokens,
        "cacheReadTokens": exchange.cache_read_tokens,
        "cacheWrite5mTokens": exchange.cache_write_5m_tokens,
        "cacheWrite1hTokens": exchange.cache_write_1h_tokens,
    }


def ttft_ms(exchange: Exchange) -> float | None:
    return None if exchange.first_event_us is None else exchange.first_event_us / 1000


def tokens_per_second(exchange: Exchange) -> float | None:
    """From the answer's first byte to its last; ``None`` where it did not come piece by piece."""
    first, last = exchange.first_event_us, exchange.last_byte_us
    if not exchange.stream or exchange.demoted or not exchange.output_tokens or first is None or last is None:
        return None
    return round(exchange.output_tokens * 1e6 / (last - first), 2) if last > first else None


def _first(fields: tuple[tuple[str, str], ...], wanted: str) -> str:
    return next((value for name, value in fields if name == wanted), "")


def summary(exchange: Exchange) -> Json:
    """``RequestSummary``: the Go program's names, and ours beside them."""
    item: Json = {
        "requestId": exchange.id,
        "timestamp": show_time(exchange.received_at),
        "method": exchange.method,
        "endpoint": exchange.path,
        "userAgent": exchange.user_agent or "",
        "contentType": _first(exchange.request_headers, "content-type"),
    }
    asked = exchange.routed_model or exchange.model
    if asked is not None:
        item |= {"model": asked, "originalModel": exchange.model or asked, "routedModel": asked}
    if exchange.verdict is not None and exchange.status is not None:
        lasted = exchange.last_byte_us or 0
        item["response"] = {
            "statusCode": exchange.status,
            "responseTime": lasted // 1000,
            "isStreaming": bool(exchange.stream) and not exchange.demoted,
            "completedAt": show_time(exchange.received_at + lasted),
        }
    error = None
    if exchange.error_type is not None:
        error = {"type": exchange.error_type, "message": exchange.error_message}
    return item | {
        "verdict": exchange.verdict,
        "stream": exchange.stream,
        "demoted": exchange.demoted,
        "provider": exchange.provider,
        "session": exchange.session,
        "prompt": exchange.prompt,
        "agent": exchange.agent,
        "parentAgent": exchange.parent_agent,
        "agentType": exchange.agent_type,
        "requestClass": exchange.request_class,
        "conversation": exchange.conversation,
        "parent": exchange.parent,
        "link": None if exchange.link is None else exchange.link.value,
        "messages": exchange.messages,
        "requestBytes": exchange.request_bytes,
        "responseBytes": exchange.response_bytes,
        "stopReason": exchange.stop_reason,
        "usage": usage(exchange),
        "costNanousd": exchange.cost_nanousd,
        "costIsPartial": exchange.cost_is_partial,
        "ttftMs": ttft_ms(exchange),
        "tokensPerSecond": tokens_per_second(exchange),
        "error": error,
        "lost": exchange.lost,
    }


def _headers(fields: tuple[tuple[str, str], ...]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in fields]


def detail(exchange: Exchange) -> Json:
    """``RequestDetail``, without bodies and followers."""
    return summary(exchange) | {
        "query": exchange.query,
        "client": exchange.client,
        "instance": exchange.instance,
        "credential": exchange.credential,
        "upstreamRequestId": exchange.upstream_request_id,
        "messageId": exchange.message_id,
        "timings": {
            "bodyReadUs": exchange.body_read_us,
            "connectedUs": exchange.connected_us,
            "headersUs": exchange.headers_us,
            "firstEventUs": exchange.first_event_us,
            "lastByteUs": exchange.last_byte_us,
        },
        "requestHeaders": _headers(exchange.request_headers),
        "responseHeaders": _headers(exchange.response_headers),
        "rateLimits": None if exchange.rate_limits is None else dict(exchange.rate_limits),
        "rawUsage": None if exchange.usage is None else dict(exchange.usage),
    }


def session_request(exchange: Exchange) -> Json:
    """``SessionRequest``."""
    writes = [each for each in (exchange.cache_write_5m_tokens, exchange.cache_write_1h_tokens) if each is not None]
    return {
        "requestId": exchange.id,
        "timestamp": show_time(exchange.received_at),
        "durationMs": None if exchange.last_byte_us is None else exchange.last_byte_us // 1000,
        "ttftMs": ttft_ms(exchange),
        "model": exchange.routed_model or exchange.model,
        "status": exchange.status,
        "verdict": exchange.verdict,
        "requestClass": exchange.request_class,
        "conversation": exchange.conversation,
        "parent": exchange.parent,
        "link": None if exchange.link is None else exchange.link.value,
        "stopReason": exchange.stop_reason,
        "inputTokens": exchange.input_tokens,
        "outputTokens": exchange.output_tokens,
        "cacheReadTokens": exchange.cache_read_tokens,
        "cacheWriteTokens": sum(writes) if writes else None,
        "costNanousd": exchange.cost_nanousd,
    }


def totals(sums: Totals) -> Json:
    """``Totals``."""
    return {
        "requests": sums.requests,
        "errors": sums.errors,
        "inFlight": sums.in_flight,
        "inputTokens": sums.input_tokens,
        "outputTokens": sums.output_tokens,
        "cacheReadTokens": sums.cache_read_tokens,
        "cacheWrite5mTokens": sums.cache_write_5m_tokens,
        "cacheWrite1hTokens": sums.cache_write_1h_tokens,
        "costNanousd": sums.cost_nanousd,
        "costIsPartial": bool(sums.partial or sums.unpriced),
        "unpriced": sums.unpriced,
    }


def session_summary(group: Group, project: str | None) -> Json:
    """``SessionSummary``."""
    return {
        "session": group.key,
        "startTime": show_time(group.first_at),
        "lastActivity": show_time(group.last_at),
        "prompts": group.prompts,
        "agents": group.agents,
        "models": list(group.models),
        "totals": totals(group.totals),
        "project": project,
    }

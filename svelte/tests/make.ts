import type { RequestSummary } from "../src/lib/types";

/** A request of which only what a test is about is told. */
export function request(requestId: string, more: Partial<RequestSummary> = {}): RequestSummary {
  return {
    requestId,
    timestamp: "2026-11-23T06:53:12.345Z",
    method: "POST",
    endpoint: "/v1/messages",
    userAgent: "",
    verdict: "complete",
    stream: true,
    demoted: false,
    provider: null,
    session: null,
    prompt: null,
    agent: null,
    parentAgent: null,
    agentType: null,
    requestClass: null,
    conversation: null,
    parent: null,
    link: null,
    messages: null,
    requestBytes: 0,
    responseBytes: 0,
    stopReason: null,
    usage: { inputTokens: null, outputTokens: null, cacheReadTokens: null, cacheWrite5mTokens: null, cacheWrite1hTokens: null },
    costNanousd: null,
    costIsPartial: false,
    ttftMs: null,
    tokensPerSecond: null,
    error: null,
    lost: null,
    ...more,
  };
}

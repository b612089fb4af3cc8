"""Tells ``twistd`` about claude-proxy."""

from twisted.application.service import ServiceMaker

claude_proxy = ServiceMaker(
    "claude-proxy",
    "twisted_proxy.tap",
    "A reverse proxy for the Anthropic API.",
    "claude-proxy",
)

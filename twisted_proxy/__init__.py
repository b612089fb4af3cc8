"""claude-proxy: a reverse proxy for the Anthropic API, on Twisted."""

__version__ = "0.1.0"

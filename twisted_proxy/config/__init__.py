"""The configuration: `Config`, and `load`, which makes one.

Its sources are command-line options, the environment, ``.env`` and ``config.yaml``.
Nothing here imports Twisted. `settings.SETTINGS` is the table that everything else follows.
"""

from __future__ import annotations

from twisted_proxy.config.loading import ConfigError, Effective, Loaded, Shown, load
from twisted_proxy.config.model import Config, DashboardConfig, ProviderConfig, RecordConfig, SubagentConfig
from twisted_proxy.config.routes import Match, RouteRule
from twisted_proxy.config.settings import SETTINGS, Setting, describe
from twisted_proxy.config.sources import Problem, read_arguments
from twisted_proxy.config.values import Keep

__all__ = [
    "SETTINGS",
    "Config",
    "ConfigError",
    "DashboardConfig",
    "Effective",
    "Keep",
    "Loaded",
    "Match",
    "Problem",
    "ProviderConfig",
    "RecordConfig",
    "RouteRule",
    "Setting",
    "Shown",
    "SubagentConfig",
    "describe",
    "load",
    "read_arguments",
]

"""
The proxy as a service: what is built from what, and the order in which it starts and stops.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import Logger
from twisted.web.iweb import IAgent
from twisted.web.resource import IResource

from .config import Config, ProviderConfig
from .listening import Listen, address_of, listen_all, listener, stand_back
from .logs import use_observer
from .metrics.metrics import Metrics
from .notify import READY, STOPPING, notify
from .record.keeper import Keeper
from .record.live import Live
from .record.sql import SqlStore
from .relay.agents import Agents, default_directories
from .relay.connection import OriginAgent
from .relay.routing import Router
from .relay.upstream import Upstream, endpoint_for, origin_of
from .runtime import Drain, DrainEnd, Gauge, branch
from .siblings import Alone, Siblings
from .signals import StopSignals
from .tracing.tracing import Tracing
from .web.api.building import Compute, Dashboards
from .web.channel import ProxySite
from .web.counting import Counting
from .web.family import Family
from .web.forward import Forwarder
from .web.front import Front, no_record
from .web.limits import raise_descriptor_limit
from .web.pages import Pages
from .web.tree import Tree

log = Logger()

CUT_GRACE = 5.0
"""Seconds that connections have to take what is queued for them, after the drain was ended from without."""

CUT_REASON = "The proxy is shutting down and could not wait any longer. Send the request again."


class ProxyService(Service):
    """
    The proxy without a front door: to hang its :meth:`resource` into a site of yours.

    ``startService`` begins to record. ``stopService`` drains: its Deferred fires when nothing is in flight, or at
    ``drain_timeout``, and what was recorded is stored; then connections to the upstream are closed. The site that holds
    the resource must go on serving until then.

    :param reactor: provides ``IReactorTime``, ``IReactorTCP`` and a name resolver; to record, ``IReactorFromThreads``
        and ``IReactorProcess``, too.
    :param agent: makes what replaces the connections to a provider.
    :param keeper: replaces the one that records.
    :param store: makes what replaces the store that the dashboard reads.
    :param compute: runs what would block, in place of the dashboard's threads.
    :param siblings: the other processes of the same proxy, if there are any.
    :param tracing: replaces what OpenTelemetry's environment variables ask for.
    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        agent: Callable[[ProviderConfig], IAgent] | None = None,
        keeper: Keeper | None = None,
        store: Callable[[], SqlStore] | None = None,
        compute: Compute | None = None,
        siblings: Siblings | None = None,
        tracing: Tracing | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.siblings: Siblings = Alone() if siblings is None else siblings
        self._reactor = reactor
        self.gauge = Gauge()
        self.drain = Drain(reactor, self.gauge, timeout=config.drain_timeout, lame_duck=config.lame_duck)
        if keeper is None and config.record.mode != "off":
            keeper = Keeper(reactor, config.record, wall_clock)
        self.keeper = keeper
        self._own_agents: list[OriginAgent] = []
        upstreams = {
            name: Upstream(reactor, self._agent(provider) if agent is None else agent(provider), provider, name)
            for name, provider in config.providers.items()
        }
        self.metrics = Metrics(reactor, gauge=self.gauge, drain=self.drain, upstreams=upstreams, records=self.keeper)
        self.tracing = tracing or Tracing.of_environment(reactor, os.environ, config.providers, wall_clock)
        self.metrics.spans = lambda: self.tracing.counts
        live = Live(self.tracing.tracing(no_record if self.keeper is None else self.keeper.begin), reactor.seconds)
        self.front = Front(
            config=config,
            clock=reactor,
            gauge=self.gauge,
            drain=self.drain,
            wall_clock=wall_clock,
            record=live.begin,
            count=self.metrics.count,
        )
        self._agents = Agents(default_directories(), reactor.seconds, self._warn)
        self._router = Router(config, self._agents)
        forwarder = Forwarder(self.front, upstreams, self._router)
        family = Family(self.gauge, self.drain, self.keeper, reactor, self.siblings)
        self.dashboards = Dashboards(
            reactor,
            config,
            self.front,
            self.keeper,
            live,
            lambda: ProxySite(self._tree, self.front),
            family,
            self.siblings,
            store=store,
            compute=compute,
        )
        self.siblings.answer("metrics", lambda _: self.metrics.snapshot(self.siblings.place))
        pages = Pages(
            self.drain,
            family,
            lambda: self.siblings.ask("metrics"),
            wall_clock,
            admit=self.dashboards.guard.admit,
        )
        self._proxied, self._pages = Counting(self.front, forwarder.render), pages.resource()
        self._tree = Tree(self.front, self._proxied, self._pages, self.dashboards.main)
        self._stopping: Deferred[None] | None = None

    def resource(self) -> IResource:
        """The proxy's tree: ``/v1``, ``/api``, ``/health``, ``/livez``, ``/metrics`` below wherever it is put."""
        tree: IResource = self._tree
        return tree

    def startService(self) -> None:
        super().startService()
        for warning in self._router.warnings():
            self._warn(warning)
        if self.keeper is not None:
            self.keeper.start()
        self.tracing.start()
        self.metrics.lag.start()

    def stopService(self) -> Deferred[None]:
        """Drain, then stop what is behind, in order. Idempotent: each caller's Deferred fires at the end."""
        if self._stopping is None:
            super().stopService()
            self._stopping = Deferred.fromCoroutine(self._stop())
        return branch(self._stopping)

    def hurry(self) -> None:
        """Wait no longer: end the drain with what is still in flight."""
        self.drain.hurry()

    def _agent(self, provider: ProviderConfig) -> IAgent:
        base_url = provider.base_url
        agent = OriginAgent(self._reactor, endpoint_for(self._reactor, base_url), origin_of(base_url))
        self._own_agents.append(agent)
        return agent

    def _warn(self, warning: str) -> None:
        log.warn("{warning}", warning=warning)

    async def _stop(self) -> None:
        self._stand_back()
        await self.drain.begin()
        if self.drain.end is not DrainEnd.IDLE:
            self._cut()
        self.dashboards.end_streams()
        await self._close_front()
        await self.dashboards.close()
        traced = self.tracing.stop()
        if self.keeper is not None:
            await self.keeper.close()
        await traced
        self.metrics.lag.stop()
        await DeferredList([agent.close() for agent in self._own_agents], consumeErrors=True)

    def _cut(self) -> None:
        for request in self.gauge.oldest():
            try:
                request.cut(CUT_REASON)
            except Exception:  # noqa: BLE001 - one that cannot be cut must not keep the others
                log.failure("cutting {request_id} failed", request_id=request.request_id)

    def _stand_back(self) -> None:
        """Nothing of ours listens here."""

    async def _close_front(self) -> None:
        """Nothing of ours listens here."""


def announce(config: Config, ports: Sequence[IListeningPort], dashboard_ports: Sequence[IListeningPort]) -> None:
    """Say where the proxy is."""
    for port in ports:
        log.info(
            "claude-proxy listening on {where}, forwarding to {upstream}",
            where=address_of(port),
            upstream=config.anthropic.base_url,
        )
    for port in dashboard_ports:
        log.info("the dashboard listening on {where}", where=address_of(port))
    notify(READY)


class ProxyServer(ProxyService):
    """
    The proxy with listening ports of its own, as ``twistd claude-proxy`` runs it.

    Starting fails with ``SystemExit`` and words where a port cannot be had: a process that is deaf must not run on.

    :param log_file: where the application's log goes, in the configured format; ``None`` leaves it to ``twistd``.
    :param listen: where the sockets come from.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        log_file: TextIO | None = None,
        listen: Listen | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, reactor, **kwargs)
        self._log_file = log_file
        self._listen = listener(reactor) if listen is None else listen
        self.site = ProxySite(self.resource(), self.front)
        self.dashboard_site = self._make_dashboard_site()
        self.metrics.doors["proxy"] = self.site
        if self.dashboard_site is not None:
            self.metrics.doors["dashboard"] = self.dashboard_site
        self.ports: list[IListeningPort] = []
        self.dashboard_ports: list[IListeningPort] = []

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        use_observer(parent, self.config.log_format, self._log_file)

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        if not isinstance(self._reactor, SelectReactor):
            raise_descriptor_limit()
        wanted = [(description, self.site) for description in self.config.listen]
        if self.dashboard_site is not None:
            wanted += [(description, self.dashboard_site) for description in self.config.dashboard.listen]
        ports = listen_all(wanted, self._listen)
        count = len(self.config.listen)
        self.ports, self.dashboard_ports = ports[:count], ports[count:]
        self._reactor.callWhenRunning(self._started)

    def hurry(self) -> None:
        if self.drain.end is not None:
            # Already past the gauge: what is left are clients that take their time.
            self._abort()
        super().hurry()

    def _started(self) -> None:
        # Collecting garbage stops every stream. What is here for good need not be looked through each time.
        gc.collect()
        gc.freeze()
        # Only now: whoever reads it may send a signal, or a request.
        self._announce()

    def _announce(self) -> None:
        """Somebody may use it from now on."""
        StopSignals(
            self._reactor, is_stopping=lambda: self.drain.draining, told=self._told_to_stop, hurry=self.hurry
        ).take()
        announce(self.config, self.ports, self.dashboard_ports)

    def _told_to_stop(self, number: signal.Signals) -> None:
        notify(STOPPING)
        if number == signal.SIGINT:
            # Somebody sits there: no balancer has to see us leave.
            self.drain.skip_lame_duck()

    def _make_dashboard_site(self) -> ProxySite | None:
        """For the listeners that only the dashboard has; ``None``: it is where the proxy is."""
        if self.dashboards.own is None:
            return None
        front = attrs.evolve(self.front, forwards=lambda local: False)
        return ProxySite(Tree(front, self._proxied, self._pages, self.dashboards.own), front)

    def _abort(self) -> None:
        for site in filter(None, (self.site, self.dashboard_site)):
            site.abort()

    def _stand_back(self) -> None:
        for port in (*self.ports, *self.dashboard_ports):
            stand_back(port)

    async def _close_front(self) -> None:
        ports = (*self.ports, *self.dashboard_ports)
        await DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)
        ended_well = self.drain.end is DrainEnd.IDLE
        grace = self.drain.remaining if ended_well else CUT_GRACE
        late = self._reactor.callLater(grace, self._abort)
        await DeferredList([site.flush() for site in filter(None, (self.site, self.dashboard_site))])
        if late.active():
            late.cancel()

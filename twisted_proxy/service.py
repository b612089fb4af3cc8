"""
The proxy as a service: what is built from what, and the order in which it starts and stops.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

import attrs
from twisted.application.service import Service
from twisted.internet import endpoints
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent
from twisted.web.resource import IResource

from .config import Config, ProviderConfig
from .logs import observer
from .metrics.metrics import Metrics
from .record.keeper import Keeper
from .record.live import Live
from .record.sql import SqlStore
from .relay.agents import Agents, default_directories
from .relay.connection import OriginAgent
from .relay.routing import Router
from .relay.upstream import Upstream, endpoint_for, origin_of
from .runtime import Drain, DrainEnd, Gauge
from .web.api.building import Compute, Dashboards
from .web.channel import ProxySite
from .web.counting import Counting
from .web.forward import Forwarder
from .web.front import Front, no_record
from .web.limits import raise_descriptor_limit
from .web.pages import Pages
from .web.tree import Tree

log = Logger()

CUT_GRACE = 5.0
"""Seconds that connections have to take what is queued for them, after the drain was ended from without."""

CUT_REASON = "The proxy is shutting down and could not wait any longer. Send the request again."


BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted. Twisted's 50 are too few for a burst of agents."""


def with_backlog(description: str) -> str:
    """An endpoint string with our backlog, where it can have one and says none."""
    if description.startswith(("tcp:", "ssl:")) and ":backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description


def _address(port: IListeningPort) -> str:
    host: Any = port.getHost()
    number = getattr(host, "port", None)
    return f"{host.host}:{number}" if number is not None else str(getattr(host, "name", host))


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
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
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
        live = Live(no_record if self.keeper is None else self.keeper.begin, reactor.seconds)
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
        self.dashboards = Dashboards(
            reactor,
            config,
            self.front,
            self.keeper,
            live,
            lambda: ProxySite(self._tree, self.front),
            store=store,
            compute=compute,
        )
        pages = Pages(
            self.gauge, self.drain, self.keeper, self.metrics, reactor, wall_clock, admit=self.dashboards.guard.admit
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
        self.metrics.lag.start()

    def stopService(self) -> Deferred[None]:
        """Drain, then stop what is behind, in order. Idempotent: each caller's Deferred fires at the end."""
        if self._stopping is None:
            super().stopService()
            self._stopping = Deferred.fromCoroutine(self._stop())
        done: Deferred[None] = Deferred()

        def ended(result: Failure | None) -> Failure | None:
            done.callback(None)
            return result

        self._stopping.addBoth(ended)
        return done

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
        await self.drain.begin()
        if self.drain.end is not DrainEnd.IDLE:
            self._cut()
        self.dashboards.end_streams()
        await self._close_front()
        await self.dashboards.close()
        if self.keeper is not None:
            await self.keeper.close()
        self.metrics.lag.stop()
        await DeferredList([agent.close() for agent in self._own_agents], consumeErrors=True)

    def _cut(self) -> None:
        for request in self.gauge.oldest():
            try:
                request.cut(CUT_REASON)
            except Exception:  # noqa: BLE001 - one that cannot be cut must not keep the others
                log.failure("cutting {request_id} failed", request_id=request.request_id)

    async def _close_front(self) -> None:
        """Nothing of ours listens here."""


class ProxyServer(ProxyService):
    """
    The proxy with listening ports of its own, as ``twistd claude-proxy`` runs it.

    Starting fails with ``SystemExit`` and words where a port cannot be had: a process that is deaf must not run on.

    :param log_file: where the application's log goes, in the configured format; ``None`` leaves it to ``twistd``.
    """

    def __init__(self, config: Config, reactor: Any, *, log_file: TextIO | None = None, **kwargs: Any) -> None:
        super().__init__(config, reactor, **kwargs)
        self._log_file = log_file
        self.site = ProxySite(self.resource(), self.front)
        self.dashboard_site = self._make_dashboard_site()
        self.ports: list[IListeningPort] = []
        self.dashboard_ports: list[IListeningPort] = []
        self._handlers: dict[int, Any] = {}
        self._told_to_stop = False

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)
        # twistd asks the application which observer it wants.
        if self._log_file is not None and hasattr(parent, "setComponent"):
            parent.setComponent(ILogObserver, observer(self.config.log_format, self._log_file))

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        if not isinstance(self._reactor, SelectReactor):
            raise_descriptor_limit()
        problems: list[str] = []
        wanted = [(description, self.site) for description in self.config.listen]
        if self.dashboard_site is not None:
            wanted += [(description, self.dashboard_site) for description in self.config.dashboard.listen]
        for description, site in wanted:
            try:
                listening = endpoints.serverFromString(self._reactor, with_backlog(description)).listen(site)
            except Exception as problem:  # noqa: BLE001 - each of several addresses has its own problem
                problems.append(f"  {description}: {problem}")
                continue
            listening.addCallbacks(
                (self.ports if site is self.site else self.dashboard_ports).append,
                lambda why, text=description: problems.append(f"  {text}: {why.value}"),
            )
        if problems:
            for port in (*self.ports, *self.dashboard_ports):
                port.stopListening()
            raise SystemExit(
                "claude-proxy cannot listen:\n"
                + "\n".join(problems)
                + "\nAnother program, perhaps another claude-proxy, may hold the address: "
                "stop it, or choose another one with --port, --host or --listen."
            )
        self._reactor.callWhenRunning(self._started)

    def hurry(self) -> None:
        if self.drain.end is not None:
            # Already past the gauge: what is left are clients that take their time.
            self._abort()
        super().hurry()

    def _started(self) -> None:
        self._take_signals()
        # Collecting garbage stops every stream. What is here for good need not be looked through each time.
        gc.collect()
        gc.freeze()
        # Only now: whoever reads it may send a signal, or a request.
        for port in self.ports:
            log.info(
                "claude-proxy listening on {where}, forwarding to {upstream}",
                where=_address(port),
                upstream=self.config.anthropic.base_url,
            )
        for port in self.dashboard_ports:
            log.info("the dashboard listening on {where}", where=_address(port))

    def _make_dashboard_site(self) -> ProxySite | None:
        """For the listeners that only the dashboard has; ``None``: it is where the proxy is."""
        if self.dashboards.own is None:
            return None
        front = attrs.evolve(self.front, forwards=lambda local: False)
        return ProxySite(Tree(front, self._proxied, self._pages, self.dashboards.own), front)

    def _abort(self) -> None:
        for site in filter(None, (self.site, self.dashboard_site)):
            site.abort()

    async def _close_front(self) -> None:
        ports = (*self.ports, *self.dashboard_ports)
        await DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)
        ended_well = self.drain.end is DrainEnd.IDLE
        grace = self.drain.remaining if ended_well else CUT_GRACE
        late = self._reactor.callLater(grace, self._abort)
        await DeferredList([site.flush() for site in filter(None, (self.site, self.dashboard_site))])
        if late.active():
            late.cancel()

    # Signals

    def _take_signals(self) -> None:
        """
        Learn which signal comes, and take the second one for "now".

        Twisted's own handlers stay in charge of the first: they stop the reactor, which stops this service.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            if callable(previous):
                self._handlers[number] = previous
                signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._heed, number, frame)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.drain.draining:
            log.info("received {signal} while draining: stopping now", signal=name)
            self.hurry()
            return
        if self._told_to_stop:
            # A terminal and a wrapper tell it twice at once: that is no second thought.
            return
        self._told_to_stop = True
        log.info("received {signal}", signal=name)
        if number == signal.SIGINT:
            # Somebody sits there: no balancer has to see us leave.
            self.drain.skip_lame_duck()
        self._handlers[number](number, frame)

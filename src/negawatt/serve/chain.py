"""Chain: the stages of a gateway, made of its options, and what keeps them going."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, final
from urllib.parse import urlsplit

from negawatt.core.codec import to_json
from negawatt.core.errors import NegawattError
from negawatt.core.serving import Cascade as Small
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.serve.exchange import Accounts, Stage
from negawatt.serve.limits import Limits
from negawatt.serve.pool import Pool
from negawatt.serve.replicas import sleeper_of
from negawatt.serve.upstream import Upstream

if TYPE_CHECKING:
    from negawatt.metering.run import LiveRun
    from negawatt.serve.cascade import Cascade
    from negawatt.serve.power import PowerHand
    from negawatt.serve.turning import Turning


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What a gateway may turn beside its own stages.

    Attributes:
        limit_power: whether the controller may turn the power limit of the devices.
        wake, sleep: commands that wake a replica and put it to sleep, "vllm" for both, or "".
        wake_s: how long a replica takes to wake [s].
    """

    limit_power: bool = False
    wake: str = ""
    sleep: str = ""
    wake_s: float = 0.0


@final
class Chain:
    """The stages: `async with Chain(...) as chain` on the event loop starts them, and puts all back as found.

    The way of a request is cache, semantic cache, cascade, batcher, pool, upstream; what the options do not ask for is
    left out.

    Args:
        options: what is served, and by which levers.
        limits: times and sizes.
        accounts: who pays for the joules.
        live: the run under the meter.
        hands: what may be turned beside.
    """

    def __init__(
        self, options: ServingOptions, limits: Limits, accounts: Accounts, live: LiveRun, hands: Hands | None = None
    ) -> None:
        self._options = options
        self._limits = limits
        self._live = live
        self._hands = hands or Hands()
        self._stack = AsyncExitStack()
        self._turning: Turning | None = None
        self._stages: dict[str, Any] = {}
        self._notes: list[str] = []
        self._upstreams: list[Upstream] = []
        self._feed = self.accounts = accounts
        self.first: Stage = self._nobody

    async def _nobody(self, exchange: object) -> Any:  # noqa: ANN401
        raise RuntimeError(f"{exchange!r} before the chain was begun")

    def setting(self) -> ServingSetting:
        """What holds now."""
        return self._options.setting if self._turning is None else self._turning.setting()

    async def __aenter__(self) -> Self:
        try:
            if self._options.control:
                await self._turn()
            await self._make()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _turn(self) -> None:
        """Let the controller turn the setting."""
        from negawatt.serve.turning import Pace, Turning

        power = await self._power()
        try:
            turning = Turning(
                self._options,
                self.accounts,
                joules=lambda: self._live.host_energy_j,
                power=power,
                notes=tuple(self._notes),
                pace=Pace(up_s=self._hands.wake_s),
            )
        except BaseException:
            if power is not None:
                await asyncio.to_thread(power.close)
            raise
        self._stack.push_async_callback(turning.close)
        turning.start()
        self._turning, self.accounts = turning, turning.traffic

    async def _power(self) -> PowerHand | None:
        """The power limit of the metered devices, where it may be turned; else a note says why not."""
        if not self._hands.limit_power:
            return None
        from negawatt.serve.power import PowerHand

        scopes = [reading.scope for reading in self._live.readings]
        try:
            return await asyncio.to_thread(PowerHand.take, scopes, owner=f"negawatt gateway ({self._live.name})")
        except NegawattError as error:
            self._notes.append(f"the power limit is left alone: {error.reason}")
            return None

    async def _make(self) -> None:
        options = self._options
        self._upstreams = [Upstream(url, self._limits) for url in options.upstreams]
        for upstream in self._upstreams:
            self._stack.push_async_callback(upstream.close)
        self.first = self._pooled()
        if options.control or options.setting.max_batch > 1:
            from negawatt.serve.batcher import Batcher

            self._add("batcher", Batcher(self.first, self.setting, replicas=len(self._upstreams)))
        if options.cascade is not None:
            self._add("cascade", self._cascade(options.cascade))
        if options.semantic is not None:
            from negawatt.serve.semantic import HttpEmbed, Semantic

            for slow in ("aiohttp", "numpy"):  # now, not while the first request waits
                import_module(slow)
            embed = HttpEmbed(options.semantic_url, model=options.semantic_model)
            self._stack.push_async_callback(embed.close)
            self._add("semantic", Semantic(self.first, embed, options.semantic, options.cache_bytes))
        if options.cache_bytes:
            from negawatt.serve.cache import Cache

            self._add("cache", Cache(self.first, options.cache_bytes))

    def _add(self, name: str, stage: Stage) -> None:
        self.first = self._stages[name] = stage

    def _pooled(self) -> Stage:
        """One server as it is, if nothing about it is ever turned; else a pool."""
        options, hands = self._options, self._hands
        plain = not (options.control or options.setting.concurrency or hands.wake or hands.sleep)
        if len(self._upstreams) == 1 and plain:
            return self._upstreams[0]
        pool = Pool(self._upstreams, self.setting, sleeper=sleeper_of(wake=hands.wake, sleep=hands.sleep))
        self._stack.push_async_callback(pool.close)
        pool.start()
        self._stages["pool"] = pool
        return pool

    def _cascade(self, how: Small) -> Cascade:
        from negawatt.serve.cascade import Cascade

        small = Upstream(how.upstream, self._limits)
        self._upstreams.append(small)
        self._stack.push_async_callback(small.close)
        known = _origin(how.upstream) in map(_origin, self._options.upstreams)
        # audits are no requests of clients: the controller's traffic does not count them
        cascade = Cascade(small, self.first, how, random.Random(), accounts=self._feed, same_party=known)
        self._stack.push_async_callback(cascade.close)
        return cascade

    @property
    def held(self) -> str:
        """What the controller has set, and why; "" without one."""
        if self._turning is None:
            return ""
        told = self._turning.told()
        return f"{told['name']}: {told['note']}"

    async def faults(self) -> list[str]:
        """What is not as it should be at the beginning, a line each."""
        down = await asyncio.gather(*(upstream.reachable() for upstream in self._upstreams))
        return self._notes + [
            f"warning: {upstream.url} cannot be reached yet; requests to it fail until it can"
            for upstream, there in zip(self._upstreams, down, strict=True)
            if not there
        ]

    async def health(self, _rest: str) -> tuple[int, str, bytes]:
        """That the gateway serves; upstream is not asked."""
        return 200, "application/json", b'{"status": "ok"}'

    async def settings(self, _rest: str) -> tuple[int, str, bytes]:
        """What holds now, why, and what came of each stage."""
        told = {"setting": to_json(self.setting())} if self._turning is None else self._turning.told()
        stages = {name: to_json(stage.stats) for name, stage in self._stages.items() if hasattr(stage, "stats")}
        return 200, "application/json", json.dumps({**told, "stages": stages}).encode("utf-8")


def _origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port of a URL (RFC 6454, 4)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

"""Chain: the stages of a gateway, made of its options."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Self, final

from negawatt.core.codec import to_json
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.serve.exchange import Stage
from negawatt.serve.limits import Limits
from negawatt.serve.upstream import Upstream


@final
class Chain:
    """The stages. Made and closed on the event loop: `async with Chain(...) as chain`.

    Args:
        options: what is served, and by which levers.
        limits: times and sizes.
    """

    def __init__(self, options: ServingOptions, limits: Limits) -> None:
        self.options = options
        self._setting = options.setting
        self._stack = AsyncExitStack()
        self._upstreams = [Upstream(url, limits) for url in options.upstreams]
        self.first: Stage = self._stages()

    def setting(self) -> ServingSetting:
        """What holds now."""
        return self._setting

    def _stages(self) -> Stage:
        options = self.options
        stage: Stage = self._upstreams[0]
        if options.setting.max_batch > 1 or options.control:
            from negawatt.serve.batcher import Batcher

            stage = Batcher(stage, self.setting, replicas=len(self._upstreams))
        if options.cache_bytes:
            from negawatt.serve.cache import Cache

            stage = Cache(stage, options.cache_bytes)
        return stage

    async def __aenter__(self) -> Self:
        for upstream in self._upstreams:
            self._stack.push_async_callback(upstream.close)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def faults(self) -> list[str]:
        """What is not as it should be at the beginning, a line each."""
        return [
            f"warning: {upstream.url} cannot be reached yet; requests are answered with 502 until it can"
            for upstream in self._upstreams
            if not await upstream.reachable()
        ]

    async def health(self, _rest: str) -> tuple[int, str, bytes]:
        """That the gateway serves; what upstream does is not asked."""
        return 200, "application/json", json.dumps({"status": "ok"}).encode()

    async def settings(self, _rest: str) -> tuple[int, str, bytes]:
        """What holds now."""
        return 200, "application/json", json.dumps({"setting": to_json(self._setting)}).encode()

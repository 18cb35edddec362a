"""Releases that need no files: each answers with its own version and arm, or fails in the way a test asks for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from registry.schema import ReleaseVersion
from registry.traffic import Traffic, TrialArm
from serving.pipeline import Pipeline
from serving.router import LoadedRelease
from serving.schema import AppSpec, Candidate, Query, Result, Understood

Name = int | str
"""A version loaded in the process, or an arm."""


class Loads:
    """`load` and `connect_arm` of a router. Everything is by version, or by arm: `fails` says what loading raises,
    `faults` what answering raises, `hangs` which never answer, `abstains` and `finds_nothing` which answer so;
    `slow_to_load` and `slow_to_answer` wait until `gate` is set, as do queries for "slow"; `says` is the id that is
    found, if not the version's number. A test may change all of it from another thread."""

    def __init__(self) -> None:
        self.fails: dict[Name, Exception] = {}
        self.faults: dict[Name, Exception] = {}
        self.hangs: set[Name] = set()
        self.abstains: set[Name] = set()
        self.finds_nothing: set[Name] = set()
        self.slow_to_load: set[Name] = set()
        self.tried: list[Name] = []
        self.closed: list[Name] = []
        self.asked: list[tuple[Name, str]] = []
        self.slow_to_answer: set[Name] = set()
        self.says: dict[Name, str] = {}
        self.gate = threading.Event()
        self.gate.set()

    async def load(self, version: ReleaseVersion) -> LoadedRelease:
        return await self._loaded(version, version.version)

    async def connect_arm(self, version: ReleaseVersion, traffic: Traffic, arm: TrialArm) -> LoadedRelease:
        assert traffic.version_of(arm) == version.version
        return await self._loaded(version, arm)

    def answered(self, name: Name, text: str) -> int:
        """How often it was asked this."""
        return self.asked.count((name, text))

    async def _loaded(self, version: ReleaseVersion, name: Name) -> LoadedRelease:
        self.tried.append(name)
        if name in self.slow_to_load:
            await self._opened()
        if name in self.fails:
            raise self.fails[name]

        async def understand(queries: Sequence[Query]) -> list[list[Understood]]:
            return [[Understood(query, query.text)] for query in queries]

        async def retrieve(queries: Sequence[Query]) -> list[Result]:
            self.asked += [(name, query.text) for query in queries]
            if name in self.hangs:
                await asyncio.Event().wait()
            if queries[0].text == "slow" or name in self.slow_to_answer:
                await self._opened()
            if name in self.faults:
                raise self.faults[name]
            found = (
                []
                if name in self.finds_nothing
                else [Candidate(self.says.get(name, str(version.version)), 1.0, "rules")]
            )
            return [Result(found, abstained=name in self.abstains) for _ in queries]

        spec = AppSpec.model_validate(version.release.spec)
        return LoadedRelease(spec, Pipeline(understand, retrieve), close=lambda: self.closed.append(name))

    async def _opened(self) -> None:
        while not self.gate.is_set():
            await asyncio.sleep(0.005)

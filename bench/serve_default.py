"""The plain server's app on Ray Serve as its tutorials show it: default proxy, one deployment per phase.

Run by `bench.speed` as `python -m bench.serve_default PORT`; stops on SIGTERM. Each deployment reserves half a CPU so
that three of them fit on two cores; that is a reservation, not a limit.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from bench.plain_server import QueryBody, embed_items, fill_collection, load_model, search

api = FastAPI()


class Embed:
    def __init__(self) -> None:
        self.model = load_model()

    def __call__(self, text: str) -> Any:
        return self.model.encode(text, normalize_embeddings=True)


class Search:
    def __init__(self, vectors: Any, folder: str) -> None:
        self.collection = fill_collection(vectors, folder)

    def __call__(self, vector: Any, top_k: int) -> dict[str, Any]:
        return search(self.collection, vector, top_k)


@serve.ingress(api)
class Ingress:
    def __init__(self, embed: Any, search: Any) -> None:
        self.embed = embed
        self.search = search

    @api.post("/query")
    async def query(self, body: QueryBody) -> Any:
        vector = await self.embed.remote(body.query)
        return await self.search.remote(vector, body.top_k)


def item_vectors() -> Any:
    """In a process that ends, so that its copy of the model is not counted as the server's memory."""
    return embed_items(load_model())


def deploy(phase: type, *arguments: Any) -> Any:
    return serve.deployment(ray_actor_options={"num_cpus": 0.5})(phase).bind(*arguments)


def main(port: int) -> None:
    ray.init(include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    vectors = ray.get(ray.remote(max_calls=1)(item_vectors).remote())
    serve.run(deploy(Ingress, deploy(Embed), deploy(Search, vectors, os.environ["BENCH_FOLDER"])))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(int(sys.argv[1]))

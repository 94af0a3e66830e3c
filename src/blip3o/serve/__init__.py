"""L5: engines behind a queue (this package) and an OpenAI-compatible server (`serve.http`)."""

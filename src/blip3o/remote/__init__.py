"""L1: requests to other people's models: servers that speak OpenAI's protocol."""

"""L1: requests to other people's models: chat servers that speak OpenAI's protocol."""

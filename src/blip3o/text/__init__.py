"""L1: text as a model sees it: the tokenizer and the chat format. No images, no models."""

"""L1: text as token ids: the tokenizer and the chat format. Independent of images and models."""

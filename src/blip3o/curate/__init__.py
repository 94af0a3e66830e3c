"""L5: data sets for training: free of benchmark prompts, and made by prompting a model."""

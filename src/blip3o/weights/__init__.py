"""L3: model folders: what is written when a model is saved and read when it is loaded."""

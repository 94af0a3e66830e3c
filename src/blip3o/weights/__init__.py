"""L3: reads and writes model folders, our own and those of the released models."""

"""The procedural scenes data set: deterministic pictures with exact words for what they show."""

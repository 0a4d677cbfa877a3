"""The formats of shards: how source files become one, and how what lies in one is found again."""

"""The benchmark: heads whose truth is known, real photos, and the ladder of the method's parts (docs/benchmark.md)."""

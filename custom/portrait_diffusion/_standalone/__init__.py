"""The small host that runs this package when no other host loaded it. Import its names from `..host` only."""

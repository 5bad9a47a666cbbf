"""Files written whole or not at all, hashes, and plain values read into checked types."""

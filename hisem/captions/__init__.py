"""The captions table: publishing and resuming."""

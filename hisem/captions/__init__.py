"""The captions table: publishing and resuming; its nights, and which of them are unusual."""

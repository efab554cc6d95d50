"""HiSem, the change captioning model, and its bundle on disk."""

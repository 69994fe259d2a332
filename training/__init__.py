"""Scripts that made the embedded checkpoint in `tiny/`. Never loaded by the Hub loader; see `training/README.md`."""

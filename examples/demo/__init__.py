"""A page to try a checkpoint: pictures, their tiles, a conversation, boxes. Start it with `make demo`."""

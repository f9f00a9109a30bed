"""Engines: forward, backward and update under DDP or DeepSpeed ZeRO."""

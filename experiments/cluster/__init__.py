"""Training on ranks that may be bad: DDP and FSDP2 scripts to start from, and what they gain."""

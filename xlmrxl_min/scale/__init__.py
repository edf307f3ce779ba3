"""Large models: the memory planner, tensor parallelism and FSDP."""

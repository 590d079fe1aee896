"""Worker processes that can be killed: the pool in the caller's process, a nursery that forks workers, the workers."""

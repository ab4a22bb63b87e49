"""Each kind of parallelism from scratch, one file an idea, on top of torch.distributed's calls."""

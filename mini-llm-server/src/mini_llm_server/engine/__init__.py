"""The engine: requests, scheduler, paged KV cache, sampler, and the loop that drives a model."""

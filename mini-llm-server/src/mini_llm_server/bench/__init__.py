"""Load tests: clients that send requests to any OpenAI-compatible server, and time them."""

"""The HTTP side: OpenAI's API in front of an engine. It uses the engine, never the reverse."""

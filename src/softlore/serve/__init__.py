"""Serving: the KoboldAI and OpenAI APIs, and the studio, over one engine."""

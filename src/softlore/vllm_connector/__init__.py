"""A KV connector for vLLM: prefix prompts as the keys and values of placeholder tokens."""

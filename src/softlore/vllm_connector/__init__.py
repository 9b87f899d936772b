"""A KV connector for vLLM: prefix prompts under the name of placeholder tokens. Needs vLLM only."""

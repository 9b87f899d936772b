"""File formats of soft prompts, one module each, with `matches`, `read` and `write`."""

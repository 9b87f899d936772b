"""Files of other programs: a module a format, and safe readers for what they are packed in."""

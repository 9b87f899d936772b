"""Settings that every test shares."""

from hypothesis import settings

# The same examples on every run and machine; a slow machine is no fault.
settings.register_profile("softlore", deadline=None, derandomize=True)
settings.load_profile("softlore")

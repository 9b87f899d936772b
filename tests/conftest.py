"""Settings that every test shares."""

import os
import tempfile
from pathlib import Path

from hypothesis import settings

# The same examples on every run and machine; a slow machine is no fault.
settings.register_profile("softlore", deadline=None, derandomize=True)
settings.load_profile("softlore")

# What the user has set is neither read nor changed, also by processes that a test starts.
NOWHERE = Path(tempfile.gettempdir()) / f"softlore-tests-{os.getpid()}"
os.environ["SOFTLORE_CONFIG"] = str(NOWHERE / "config.json")
os.environ["SOFTLORE_MODELS"] = str(NOWHERE / "models")
os.environ.pop("SOFTLORE_MODEL", None)

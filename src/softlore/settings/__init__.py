"""Settings, each declared once: of samplers, of training and of the server.

Importing them is cheap: nothing here needs torch.
"""

from softlore.settings.names import Names
from softlore.settings.sampling import STEPS, SamplingParams, kobold_order
from softlore.settings.serving import ServeSettings
from softlore.settings.table import Setting, Settings, Textual, closest, setting, table
from softlore.settings.training import TrainingConfig

__all__ = [
    "STEPS",
    "Names",
    "SamplingParams",
    "ServeSettings",
    "Setting",
    "Settings",
    "Textual",
    "TrainingConfig",
    "closest",
    "kobold_order",
    "setting",
    "table",
]

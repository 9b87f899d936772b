"""Context: lore activation, token budget, splicing of text and soft prompts into tensors."""

from softlore.context.activation import (
    Activation,
    ActiveEntry,
    BadKey,
    EntryPlacement,
    SkippedEntry,
    activate,
    place_entries,
)
from softlore.context.compose import compose, embed, logits
from softlore.context.scan import ScanSettings
from softlore.context.splice import Spliced, splice
from softlore.context.timers import Timers
from softlore.context.tree import ROOT, Node, Tree, free_places
from softlore.context.tree_batch import (
    Branch,
    TreeBatch,
    TreeLayout,
    backward,
    hidden_states,
    read_trunks,
)

__all__ = [
    "ROOT",
    "Activation",
    "ActiveEntry",
    "BadKey",
    "Branch",
    "EntryPlacement",
    "Node",
    "ScanSettings",
    "SkippedEntry",
    "Spliced",
    "Timers",
    "Tree",
    "TreeBatch",
    "TreeLayout",
    "activate",
    "backward",
    "compose",
    "embed",
    "free_places",
    "hidden_states",
    "logits",
    "place_entries",
    "read_trunks",
    "splice",
]

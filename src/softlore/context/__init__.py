"""From pieces to what the model reads: the one splice, and the ways of running it."""

from softlore.context.activation import (
    Activation,
    Active,
    BadKey,
    Passed,
    Places,
    activate,
    placed,
)
from softlore.context.compose import compose, embed, logits
from softlore.context.forms import Branching, Form, Leaf, backward, hidden_states
from softlore.context.scan import Scanning
from softlore.context.splice import ROOT, Node, Spliced, Tree, splice
from softlore.context.timers import Timers

__all__ = [
    "ROOT",
    "Activation",
    "Active",
    "BadKey",
    "Branching",
    "Form",
    "Leaf",
    "Node",
    "Passed",
    "Places",
    "Scanning",
    "Spliced",
    "Timers",
    "Tree",
    "activate",
    "backward",
    "compose",
    "embed",
    "hidden_states",
    "logits",
    "placed",
    "splice",
]

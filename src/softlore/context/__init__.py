"""From pieces to what the model reads: the one splice, and the ways of running it."""

from softlore.context.compose import compose, embed, logits
from softlore.context.forms import Branching, Form, Leaf, backward, hidden_states
from softlore.context.splice import ROOT, Node, Spliced, Tree, splice

__all__ = [
    "ROOT",
    "Branching",
    "Form",
    "Leaf",
    "Node",
    "Spliced",
    "Tree",
    "backward",
    "compose",
    "embed",
    "hidden_states",
    "logits",
    "splice",
]

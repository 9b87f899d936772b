"""Hard-prompt search: discrete prompts optimized by gradients, by trial and by reflection."""

from softlore.control.search.methods import METHODS, nearest_ids
from softlore.control.search.run import Searcher, SearchResult
from softlore.control.search.scoring import Scorer
from softlore.control.search.writers import ModelWriter, ServerWriter, Writer, find_writer

__all__ = [
    "METHODS",
    "ModelWriter",
    "Scorer",
    "SearchResult",
    "Searcher",
    "ServerWriter",
    "Writer",
    "find_writer",
    "nearest_ids",
]

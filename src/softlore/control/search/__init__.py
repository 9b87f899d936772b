"""Hard-prompt search: discrete prompts optimized by gradients and by trial."""

from softlore.control.search.methods import METHODS, nearest_ids
from softlore.control.search.run import Searcher, SearchResult
from softlore.control.search.scoring import Scorer

__all__ = ["METHODS", "Scorer", "SearchResult", "Searcher", "nearest_ids"]

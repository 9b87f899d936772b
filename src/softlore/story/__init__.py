"""Stories: turns with undo and branches, in SQLite files."""

from softlore.story.library import StoryLibrary
from softlore.story.settings import StorySettings
from softlore.story.story import Story
from softlore.story.turns import ROOT, StoryBranch, StoryDraft, Turn

__all__ = ["ROOT", "Story", "StoryBranch", "StoryDraft", "StoryLibrary", "StorySettings", "Turn"]

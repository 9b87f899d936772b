"""Stories: turns with undo and branches, kept in files that nothing is lost from."""

from softlore.story.library import StoryLibrary
from softlore.story.settings import StorySettings
from softlore.story.story import Story
from softlore.story.turns import ROOT, Branch, StoryDraft, Turn

__all__ = ["ROOT", "Branch", "Story", "StoryDraft", "StoryLibrary", "StorySettings", "Turn"]

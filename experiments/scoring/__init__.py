"""Folders of images, from any generator, scored with any rewards: `xomni-rl score`."""

from xomni_rl.experiments.scoring.errors import ScoringError, ScoringInterruptedError
from xomni_rl.experiments.scoring.matching import Item, match_folder
from xomni_rl.experiments.scoring.running import FolderScores, score_folder

__all__ = ["FolderScores", "Item", "ScoringError", "ScoringInterruptedError", "match_folder", "score_folder"]

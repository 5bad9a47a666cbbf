"""GenEval (Ghosh et al. 2023): prompts with what they ask for, detections against it, scores by task."""

from bitsfusion.metrics.geneval.summary import GenEvalResult, GenEvalSummary, TaskScore, geneval_summary

__all__ = ["GenEvalResult", "GenEvalSummary", "TaskScore", "geneval_summary"]

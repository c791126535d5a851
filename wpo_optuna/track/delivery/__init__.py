"""Carries a study's trials to MLflow: a thread beside the loop feeds a process that delivers.

``feeder`` runs in the study's process and knows Optuna; ``worker`` is the process that imports
MLflow; ``messages`` is what they say to each other; ``study_run`` writes to MLflow, exactly once;
``table`` keeps the table of all trials; ``presence`` is how several processes on one study know of
each other.
"""

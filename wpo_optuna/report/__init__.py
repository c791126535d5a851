"""``python -m wpo_optuna.report``: a study on one page."""

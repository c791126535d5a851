"""``python -m wpo_optuna.study``: finds a weight programming strategy, as an Optuna study."""

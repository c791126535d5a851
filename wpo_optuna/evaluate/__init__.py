"""``python -m wpo_optuna.evaluate``: a network's accuracy over time."""

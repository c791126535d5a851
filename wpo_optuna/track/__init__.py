"""``python -m wpo_optuna.track``: a study in MLflow, as a projection of its Optuna storage."""

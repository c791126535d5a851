"""MLflow as a projection of the Optuna storage: whatever a study has there is brought to it."""

"""``python -m wpo_optuna.report``: what a study found, as one HTML page with figures.

What it shows of weights and hardware is measured at the end of a study and lies in its results
folder, see :mod:`wpo_optuna.report.measurements`; everything else is in the Optuna storage.
"""

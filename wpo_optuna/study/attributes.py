"""Names under which a study keeps in its Optuna storage what it is about and what it found.

All are user attributes of the study, but for the last group, which are its trials'. Whoever shows a
study (``track``, ``report``) reads them here and nowhere else: what is not in the storage, or in
the results folder that it names, is not shown.
"""

from __future__ import annotations

# What the study is about, written once.
FINGERPRINT = "problem_fingerprint"  # str, see WeightProgrammingProblem.fingerprint
DESCRIPTION = "problem_description"  # dict, everything that changes the loss, by dotted path
PROBLEM = "problem"  # dict, the problem's settings in a form to read
COORDINATES = "coordinates"  # str, what the trials' parameters stand for
SAMPLER = "sampler"  # str
OBJECTIVE = "objective"  # str, what is optimised; absent in studies of earlier versions
SAMPLER_OPTIONS = "sampler_options"  # dict
SEED = "seed"  # int
ENGINE = "engine"  # str
BASELINE = "baseline"  # float, the baseline's TNMSE as the engine says
SELF_CHECK = "self_check"  # dict, see loss.engine_choice.SelfCheck.to_json
VERSIONS = "versions"  # dict, version of each package
PARENT_STUDY = "parent_study"  # str, study under whose MLflow run this one's is put

# What it found, written anew by each run of the study.
STATUS = "status"  # str, one of STATUSES
N_TRIALS = "n_trials"  # int, the total of completed trials that was asked for
SETTINGS = "settings"  # str, the effective settings as YAML
SCORES = "scores"  # dict, see study.scoring.Scores.to_json
STRATEGY = "strategy"  # dict, the winner's strategy as in strategy.json
METRICS = "metrics"  # dict of floats, further numbers about the whole study
RESULTS = "results"  # str, absolute path of the results folder on the host that wrote it

# Where the study is recorded in MLflow, without passwords; track writes and reads it.
DESTINATION = "mlflow"  # dict, see track.destination.Destination.remember
IDENTITY = "mlflow_identity"  # str, tells its run from those of studies in other databases
# int, ms since the epoch: when its first recorded session began, and its last one ended.
STARTED, ENDED = "mlflow_started_ms", "mlflow_ended_ms"

# MLflow's words for the state of a run.
RUNNING, FINISHED, KILLED, FAILED = STATUSES = ("RUNNING", "FINISHED", "KILLED", "FAILED")

# Of a trial that no sampler proposed: the kind of search that found it, the total of trials that
# the study was to be brought to, and its number among the trials of that search.
PHASE, PHASE_TOTAL, PHASE_INDEX = "phase", "phase_total", "phase_index"
# Of a trial, where its engine tells it: its mean conductance in µS per weight.
CONDUCTANCE = "conductance_us"
POLISH, GRADIENT_STEP, GRADIENT_START = "polish", "gradient step", "gradient start"
LIMITED = "polish under a limit"

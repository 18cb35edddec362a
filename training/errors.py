"""The error tree of training.

TrainingError
  CasesInvalid     correct the evaluation file, or the script that prints it
  SearcherBroken   repair what is being evaluated: it did not answer as agreed
  ExportRefused    export another model, or to another folder
  DatasetInvalid   correct the examples, the script that prints them, or `train.NAME.data`
  TrainingRefused  correct `train` in app.yaml, or what the run was started with
  BatchStopped     bring the model back, or correct the files of the batch; then run it again: it goes on
  TrainingFailed   look at the log: a trainer's loop raised, or its workers were lost too often
  RunFenced        another run took over the app: nothing was published
"""

from __future__ import annotations


class TrainingError(Exception):
    """Something about a run that a person can act upon; the message names the fault and the fix."""


class CasesInvalid(TrainingError):
    pass


class SearcherBroken(TrainingError):
    pass


class ExportRefused(TrainingError):
    pass


class DatasetInvalid(TrainingError):
    pass


class TrainingRefused(TrainingError):
    pass


class TrainingFailed(TrainingError):
    pass


class RunFenced(TrainingError):
    pass


class BatchStopped(TrainingError):
    pass

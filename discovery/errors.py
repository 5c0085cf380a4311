"""What can go wrong offline.

    LabError
    ├── HarvestError     residuals that cannot be taken, continued or read
    ├── FitError         a dictionary that can't have been trained on the model or residuals it is used with
    └── TrainError       a dictionary that cannot be trained, or trained on

Each ends a command as one line on stderr and exit code 1.
"""


class LabError(Exception):
    """A run that cannot be begun, continued or read."""


class HarvestError(LabError):
    """A harvest that cannot be begun, continued or read."""


class FitError(LabError):
    """A dictionary that can't have been trained on the model or the residuals it is said to be for."""


class TrainError(LabError):
    """A training run that cannot be begun or continued."""

"""What can go wrong offline.

    LabError
    ├── ArgumentError    a flag with a value that no run can be made of
    ├── ElicitError      questions that cannot be read or asked, replies that cannot be kept
    ├── ExampleError     examples that cannot be collected, continued or read
    ├── ExplainError     explanations that cannot be asked for, kept or read
    │   ├── EndpointError    the model's endpoint is no use to anyone: the run ends
    │   ├── BudgetError      the next call could cost more than is allowed: the run ends
    │   └── ReplyError       one answer is of no use: its latent is left for another run
    ├── HarvestError     residuals that cannot be taken, continued or read
    │   └── CorpusError      text or chat that cannot be read or tokenised
    ├── FitError         a dictionary that can't have been trained on the model or residuals it is used with
    ├── MonitorLabError  a monitor that cannot be fitted, calibrated or evaluated with what is given
    │   └── LabelledDataError  labelled conversations that cannot be read, or that have nothing to tell apart
    ├── PageError        pages that cannot be made
    ├── SearchError      a search that has nothing to go by
    ├── SteerError       a steering study or causal test that cannot be made of what is given
    ├── TrainError       a dictionary that cannot be trained, or trained on
    └── TuneError        a search over recipes that cannot be begun, continued or concluded

Each ends a command as one line on stderr and exit code 1.
"""


class LabError(Exception):
    """A run that cannot be begun, continued or read."""


class ArgumentError(LabError):
    """A flag with a value that no run can be made of. No ValueError, of which argparse would keep no word."""


class ElicitError(LabError, ValueError):
    """Questions that cannot be read or asked, or replies that cannot be kept."""


class ExampleError(LabError):
    """Examples of latents that cannot be collected, continued or read."""


class HarvestError(LabError):
    """A harvest that cannot be begun, continued or read."""


class CorpusError(HarvestError, ValueError):
    """Text or chat that cannot be read, or that the model's tokenizer has no form for."""


class FitError(LabError):
    """A dictionary that can't have been trained on the model or the residuals it is said to be for."""


class MonitorLabError(LabError, ValueError):
    """A monitor that cannot be fitted, calibrated or evaluated with what is given."""


class LabelledDataError(MonitorLabError):
    """Labelled conversations that cannot be read, or that have nothing to tell apart."""


class PageError(LabError):
    """Pages that cannot be made."""


class SearchError(LabError, ValueError):
    """A search that has nothing to go by."""


class SteerError(LabError, ValueError):
    """A steering study or a causal test that cannot be made, or continued, of what is given."""


class TrainError(LabError):
    """A training run that cannot be begun or continued."""


class TuneError(LabError):
    """A search over recipes that cannot be begun, continued or concluded."""


class ExplainError(LabError):
    """Explanations that cannot be asked for, kept or read."""


class EndpointError(ExplainError):
    """The endpoint is unreachable, refuses the key, has no such model, or stays out of order."""


class BudgetError(ExplainError):
    """The next call could cost more than the run may."""


class ReplyError(ExplainError):
    """A refusal, or an answer that is not what was asked for."""

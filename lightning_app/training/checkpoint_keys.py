"""The keys of a checkpoint: they are spelt here alone. What a callback or an extension keeps under its own is its own.

A leaf, as those who read the file (training/checkpoint_io.py) and those who know what is in it both need them.
"""

# Lightning's own, seen in 2.6.6
WEIGHTS, STEP, OPTIMIZERS, CALLBACKS, LOOPS = "state_dict", "global_step", "optimizer_states", "callbacks", "loops"
SCHEDULERS, PRECISION = "lr_schedulers", "MixedPrecision"
VERSION = "pytorch-lightning_version"  # it opens no checkpoint without
HYPER_PARAMETERS, HPARAMS_NAME = "hyper_parameters", "hparams_name"  # what the command line said, in types of its own
CURRENT = "current_model_state"  # the trained weights, where WEIGHTS are their average
DATA = "TextDataModule"  # the data module's state: by its class's name

# Ours
OURS = "lightning_app"  # see `training.checkpoint.Checkpoint`
SIDE_FILES = "side_files"  # {name in WEIGHTS: {"file", "sha256", "shape", "dtype"}}
OF_EXTENSIONS = "regularizers."  # in the names of their tensors
SPIKES = "spikes"  # in `Checkpoint.own`: what `skip_spikes` compares with
DOCUMENTS = "documents"  # in `Checkpoint.own`: source by content key of each document that a memory holds

# Of format 1, beside Lightning's
CLASS_PATH, INSTANTIATOR = "_class_path", "_instantiator"  # among HYPER_PARAMETERS
FORMER_UNITS, FORMER_OPTIONS, FORMER_DOCUMENTS = "units", "options_in_force", "memory_documents"
FORMER_COMMIT, FORMER_LOG_LINES = "commit", "log_lines"

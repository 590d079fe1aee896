"""Shared test set-up: shape and dtype annotations of kernels are checked at run time, here and nowhere else."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("concordant.kernels", "beartype.beartype")

"""Triton kernels of the decode pass on a GPU. Nothing imports them where there is none."""

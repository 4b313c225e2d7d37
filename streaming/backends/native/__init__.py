"""C++ kernels for CPUs: paged attention, RMS norm and sampling.

They are compiled on the machine when a model is first served. Without a C++ compiler, torch
computes the same, more slowly.
"""

"""Kernels of ours for CPUs, in C++: compiled when a model is first served, if there is a compiler.

Nothing needs them: without, torch does the same, more slowly.
"""

"""What arrives when: traces, synthetic loads and prompts that share prefixes. Simulator and bench read the same.

A workload is rows of data; no text and no clock. `read_workload` takes a file, `segments` and `patterns` make one.
"""

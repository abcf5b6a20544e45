"""The parts of `benchmarks/policies.py`: which loads, which arms, how goodput is searched, and what the report says."""
